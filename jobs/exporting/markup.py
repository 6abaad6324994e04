"""Writing XML piece by piece."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl


class Markup:
    """Writes elements to a file, in UTF-8. Text and attributes are escaped."""

    def __init__(self, file: IO[bytes]) -> None:
        self.xml = XMLGenerator(file, "utf-8", short_empty_elements=True)

    @contextmanager
    def element(self, name: str, attributes: Mapping[str, str] | None = None) -> Iterator[None]:
        """An element around what is written in the block."""
        self.xml.startElement(name, AttributesImpl(dict(attributes or {})))
        yield
        self.xml.endElement(name)

    def text(self, name: str, content: str | int) -> None:
        """An element that holds text."""
        with self.element(name):
            self.xml.characters(str(content))

    def empty(self, name: str, attributes: Mapping[str, str] | None = None) -> None:
        """An element that holds nothing."""
        with self.element(name, attributes):
            pass
