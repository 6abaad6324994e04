"""The vocabulary file: the classes to look for, and the words for each of them.

UTF-8, one class per line. Blank lines and lines that begin with ``#`` are ignored. A line is a class name, or
``name: query one; query two``. Without queries, the name is the query. Commas are part of the text. ``name:`` with
nothing after the colon is a class without words, which examples show.
A background file has the same format, but only its queries are used.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Literal


@dataclass(frozen=True)
class VocabularyClass:
    """A class and its queries; none for a class that only examples show."""

    name: str
    queries: tuple[str, ...]


def parse_vocabulary(text: str, wordless: bool = False) -> tuple[VocabularyClass, ...]:
    """Parse the classes, in file order.

    Args:
        text: the file's.
        wordless: classes may have no words.

    Raises:
        ValueError: no class, an empty name or query, or a repeated name or query. The message names the line.
    """
    classes: list[VocabularyClass] = []
    line_of_name: dict[str, int] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, listed = (part.strip() for part in line.partition(":"))
        queries = tuple(query.strip() for query in listed.split(";")) if colon else (name,)
        if wordless and not listed and colon:
            queries = ()
        if not name:
            raise ValueError(f"line {number}: the class has no name")
        if name in line_of_name:
            raise ValueError(f"line {number}: class {name!r} is already on line {line_of_name[name]}")
        if not all(queries):
            raise ValueError(f"line {number}: class {name!r} has an empty query")
        if len(set(queries)) < len(queries):
            raise ValueError(f"line {number}: class {name!r} has the same query twice")
        line_of_name[name] = number
        classes.append(VocabularyClass(name, queries))
    if not classes:
        raise ValueError("there is no class in it: write one class name per line")
    return tuple(classes)


def parse_background(text: str) -> tuple[str, ...]:
    """Parse the background phrases, in file order and without repetitions. There may be none.

    Raises:
        ValueError: as for `parse_vocabulary`, except that the file may be empty.
    """
    if all(not line.strip() or line.lstrip().startswith("#") for line in text.removeprefix("\ufeff").splitlines()):
        return ()
    return tuple(dict.fromkeys(query for entry in parse_vocabulary(text) for query in entry.queries))


def packaged_background(name: Literal["voc", "world"]) -> tuple[str, ...]:
    """The packaged background phrases: those published for PASCAL VOC, or some hundred common things."""
    return parse_background(files("schemas").joinpath(f"data/{name}.txt").read_text(encoding="utf-8"))
