import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.vocabulary import (
    VocabularyClass,
    packaged_background,
    parse_background,
    parse_vocabulary,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [("cat", ["cat"])]),
        ("cat\ndog\n", [("cat", ["cat"]), ("dog", ["dog"])]),
        ("# pets\n\n  cat  \n   # more\ndog", [("cat", ["cat"]), ("dog", ["dog"])]),
        ("person: man; woman , girl", [("person", ["man", "woman , girl"])]),
        ("person, people", [("person, people", ["person, people"])]),
        ("time: clock: wall; watch", [("time", ["clock: wall", "watch"])]),
        ("\ufeffcat\r\ndog\r\n", [("cat", ["cat"]), ("dog", ["dog"])]),
        ("Straße\n猫: 猫; ねこ", [("Straße", ["Straße"]), ("猫", ["猫", "ねこ"])]),
        ("c#\n", [("c#", ["c#"])]),
    ],
)
def test_accepted(text: str, expected: list[tuple[str, list[str]]]) -> None:
    assert parse_vocabulary(text) == tuple(VocabularyClass(name, tuple(queries)) for name, queries in expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class"),
        ("# only\n\n", "no class"),
        ("cat\ndog\ncat", "line 3: class 'cat' is already on line 1"),
        ("cat\n\n# x\ncat: kitten", "line 4: class 'cat' is already on line 1"),
        (": kitten", "line 1: the class has no name"),
        ("cat:", "line 1: class 'cat' has an empty query"),
        ("dog\ncat: kitten;; tom", "line 2: class 'cat' has an empty query"),
        ("cat: a; b; a", "line 1: class 'cat' has the same query twice"),
    ],
)
def test_refused_with_the_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_vocabulary(text)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        classes = parse_vocabulary(text)
    except ValueError:
        return
    names = [entry.name for entry in classes]
    assert names
    assert len(set(names)) == len(names)
    assert all(entry.name.strip() and entry.queries and all(entry.queries) for entry in classes)


def test_background_may_be_empty_and_repeats_are_dropped() -> None:
    assert parse_background("# nothing\n") == ()
    assert parse_background("sky\nwater: sea; lake\nsea") == ("sky", "sea", "lake")


def test_packaged_background_is_the_published_one() -> None:
    words = packaged_background("voc")
    assert len(words) == 25
    assert words[0] == "ground"
    assert words[-1] == "sign"


def test_a_class_without_words_where_there_are_examples() -> None:
    assert parse_vocabulary("cat\nthing :  ", wordless=True)[1] == VocabularyClass("thing", ())
    with pytest.raises(ValueError, match="line 1: class 'cat' has an empty query"):
        parse_vocabulary("cat: kitten;", wordless=True)
