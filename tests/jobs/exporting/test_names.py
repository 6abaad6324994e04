"""Names of files are unique, safe and found without remembering all."""

import posixpath
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jobs.exporting.names import Names

PARTS = st.text("a.#%2/ \n\\", max_size=6)
IDS = st.lists(
    st.builds("{}{}".format, PARTS, st.sampled_from(["", ".jpg", ".png", ".JPG", "#2", ".jpg#2"])), unique=True
)


@given(image_ids=IDS)
def test_no_two_images_share_a_name_and_none_leaves_its_folder(image_ids: list[str]) -> None:
    names = Names()
    found = [names.of(image_id) for image_id in sorted(image_ids, key=str.encode)]
    for taken in ([name for name, _, _ in found], [file for _, file, _ in found]):
        assert len(set(taken)) == len(image_ids)
        for name in taken:
            assert posixpath.normpath(name) == name
            assert not name.startswith(("/", "../"))
            assert name != ".."
            assert "\n" not in name
            assert "\\" not in name
            assert all(part == part.strip() and part for part in Path(name).parts)


def test_little_is_remembered() -> None:
    names = Names()
    for number in range(10_000):
        names.of(f"a.jpg/{number:05}.jpg")
    assert len(names.taken) <= 2
