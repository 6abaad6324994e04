"""Files of image ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.image_ids import format_image_ids, parse_image_ids


@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_any_ids_are_read_as_they_were_written(image_ids: list[str]) -> None:
    assert parse_image_ids(format_image_ids(image_ids)) == tuple(image_ids)


def test_a_file_from_an_editor_is_read() -> None:
    assert parse_image_ids("\ufeffb/2.jpg\r\n\r\n  a 1.jpg\r\nb/2.jpg") == ("b/2.jpg", "a 1.jpg")


@pytest.mark.parametrize(
    ("text", "said"), [("\n \n", "there is no image id"), ('a\n"b\n', "line 2 begins with a quote")]
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_image_ids(text)
