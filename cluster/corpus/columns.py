"""What is read of a corpus: the column with the images, and what is beside each image.

Beside an image of a table are the other columns of its row. Beside one of a tar shard or a folder are its siblings: the
files of the same name up to the first dot, without what follows it (``a/7.jpg``, ``a/7.json``, ``a/7.txt``), as
WebDataset has them. A column of the job's rows can come from

* a column of the tables, with its type;
* a sibling ``json``, ``txt`` or ``cls``, as text;
* any other name: the value of that key in the sibling ``json``. Text stays text, other values are written as JSON.

What is not there is null.
"""

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, TypeAlias

import pyarrow as pa

from cliper.decode import IMAGE_ENDINGS
from schemas.rows import ROW_SCHEMA

USUAL_IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "img", "content")
TEXT_SIBLINGS = ("json", "txt", "cls")
TAG_SEPARATORS = re.compile(r"[;\n]")

Beside: TypeAlias = Mapping[str, bytes] | pa.RecordBatch
"""What is beside an image: the contents of its siblings by ending, or the other columns of its row of a table."""


@dataclass(frozen=True)
class Columns:
    """What a job reads of a corpus.

    Attributes:
        image: the column with the images; of tar shards and folders the ending of the images' names. None finds it.
        keep: columns that the job's rows get.
        tags: column with the names of the classes that an image can show.
        everything: read all that is beside the images.
    """

    image: str | None = None
    keep: tuple[str, ...] = ()
    tags: str | None = None
    everything: bool = False

    def manifest(self) -> dict[str, Any]:
        """What differs from the defaults, for a manifest."""
        names = {"image": "image_column", "keep": "keep_columns", "tags": "allowed_column"}
        return {name: value for field, name in names.items() if (value := asdict(self)[field])}

    @property
    def beside(self) -> tuple[str, ...]:
        """The columns beside the images that are asked for, each once."""
        return tuple(dict.fromkeys([*self.keep, *([self.tags] if self.tags is not None else [])]))

    @property
    def siblings(self) -> bool:
        """True if siblings are read."""
        return self.everything or bool(self.beside)

    def sibling(self, ending: str) -> str | None:
        """The name under which a sibling with this ending is kept; None if it is not needed."""
        texts = set(self.beside) & set(TEXT_SIBLINGS)
        wanted = texts | ({"json"} if set(self.beside) - texts else set())
        return ending if self.everything else ending.lower() if ending.lower() in wanted else None

    def is_image(self, name: str) -> bool:
        """True for the names of image files, hidden or not."""
        ending = sample_of(name)[1]
        return name.lower().endswith(IMAGE_ENDINGS) and self.image in (None, ending, ending.lower())

    def of_table(self, schema: pa.Schema) -> tuple[str, list[str]]:
        """The column with the images, and those to read beside it.

        Raises:
            ValueError: a column is missing, or it is not clear which has the images.
        """
        image = image_column(schema, self.image)
        beside = [name for name in schema.names if name != image] if self.everything else list(self.beside)
        for name in [image, *beside]:
            if name not in schema.names:
                raise ValueError(f"it has no column {name}{close_name(name, schema)}")
            if schema.names.count(name) > 1:
                raise ValueError(f"it has several columns {name}: give them names of their own")
        if self.tags is not None and not has_names(schema.field(self.tags).type):
            raise ValueError(f"its column {self.tags} has {schema.field(self.tags).type} and not names of classes")
        return image, beside


def sample_of(name: str) -> tuple[str, str]:
    """The name of a sample, and the rest of a file's name: ``a/7.seg.png`` is ``a/7`` and ``seg.png``."""
    folder, base = posixpath.split(name)
    stem, _, ending = base.partition(".")
    return posixpath.join(folder, stem), ending


def has_names(data_type: pa.DataType) -> bool:
    """True for text and lists of text."""
    if pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        data_type = data_type.value_type
    data_type = plain(data_type)
    return pa.types.is_string(data_type) or pa.types.is_large_string(data_type)


def close_name(name: str, schema: pa.Schema) -> str:
    close = get_close_matches(name, schema.names, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (it has {', '.join(schema.names)})"


def image_column(schema: pa.Schema, wanted: str | None = None) -> str:
    """The column with image bytes: the wanted one, or one with a usual name, or the only one of ``bytes`` or
    ``{bytes, path}``.

    Raises:
        ValueError: it has no bytes; or there is none, or several and none of a usual name.
    """
    candidates = [field.name for field in schema if is_binary(image_type(field.type))]
    if wanted is not None:
        if wanted in candidates:
            return wanted
        if wanted in schema.names:
            raise ValueError(f"its column {wanted} has {schema.field(wanted).type} and not the bytes of images")
        raise ValueError(f"it has no column {wanted}{close_name(wanted, schema)}")
    usual = [name for name in USUAL_IMAGE_COLUMNS if name in candidates]
    if usual:
        return usual[0]
    if len(candidates) == 1:
        return candidates[0]
    found = f"several binary columns ({', '.join(candidates)})" if candidates else "no binary column"
    raise ValueError(f"it has {found}: name the one with the images (--image-column)")


def image_type(column_type: pa.DataType) -> pa.DataType:
    """The bytes' type: of the column, or of the field ``bytes`` of Hugging Face's ``{bytes, path}`` struct."""
    is_pair = pa.types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0
    return column_type.field("bytes").type if is_pair else column_type


def is_binary(data_type: pa.DataType) -> bool:
    return pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type)


def beside_image(batch: pa.RecordBatch, columns: Columns, image: str, beside: Sequence[str]) -> pa.RecordBatch | None:
    """The columns beside the images; with everything also what Hugging Face's struct has beside the bytes."""
    found = batch.select(list(beside))
    column = batch.column(image)
    if columns.everything and pa.types.is_struct(column.type):
        names = [field.name for field in column.type]
        rest = {name: values for name, values in zip(names, column.flatten(), strict=True) if name != "bytes"}
        if rest:
            found = found.append_column(image, pa.StructArray.from_arrays(list(rest.values()), list(rest)))
    return found if found.num_columns else None


def image_bytes(column: pa.Array) -> Iterator[bytes | None]:
    if pa.types.is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]  # flatten keeps the struct's nulls
    return (value.as_py() for value in column)


@dataclass(frozen=True)
class Kept:
    """The columns that the job's rows get from a corpus.

    Attributes:
        columns: what is read.
        schema: the kept columns as the rows have them, in the order of ``columns.keep``. A name that rows have already
            gets ``input_`` before it.
    """

    columns: Columns
    schema: pa.Schema

    @classmethod
    def of(cls, columns: Columns, types: Mapping[str, pa.DataType]) -> "Kept":
        """With the types of a table's columns; columns without one are text.

        Raises:
            ValueError: two kept columns get the same name.
        """
        fields = [pa.field(kept_name(name), plain(types.get(name, pa.string()))) for name in columns.keep]
        names = [field.name.casefold() for field in fields]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"two columns would be called {fields[number].name}")
        return cls(columns, pa.schema(fields))

    def values(self, beside: Beside | None) -> tuple[list[pa.Array], list[str] | None]:
        """The kept columns of an image, each with one value, and its tags.

        Raises:
            ValueError: a value cannot be read.
        """
        names, tags = self.columns.keep, self.columns.tags
        if isinstance(beside, pa.RecordBatch):
            kept = [beside.column(source).cast(field.type) for source, field in zip(names, self.schema, strict=True)]
            found = beside.column(tags)[0].as_py() if tags is not None else None
        else:
            texts = Siblings(beside or {})
            kept = [pa.array([texts.text(name)], field.type) for name, field in zip(names, self.schema, strict=True)]
            found = texts.value(tags) if tags is not None else None
        return kept, read_tags(found)


def kept_name(name: str) -> str:
    """The name of a kept column in the rows. SQL does not tell upper and lower case apart."""
    return f"input_{name}" if name.casefold() in ROW_SCHEMA.names else name


def plain(data_type: pa.DataType) -> pa.DataType:
    """The type without what only some readers understand: dictionaries, and types of other programs."""
    if isinstance(data_type, pa.BaseExtensionType):
        return plain(data_type.storage_type)
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type


@dataclass(frozen=True)
class Siblings:
    """The siblings of an image, as values."""

    contents: Mapping[str, bytes]

    def value(self, name: str) -> Any:
        """The content of a sibling, or the value of a key in ``json``; None if it is not there.

        Raises:
            ValueError: it is no text or no JSON.
        """
        if name in TEXT_SIBLINGS:
            content = self.contents.get(name)
            try:
                return None if content is None else content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"its .{name} is not UTF-8 text (byte {error.start})") from error
        return self.document.get(name)

    @cached_property
    def document(self) -> dict[str, Any]:
        """The object in ``json``; empty if there is none.

        Raises:
            ValueError: it is something else.
        """
        text = self.value("json")
        try:
            document = {} if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its .json is damaged: {error}") from error
        if not isinstance(document, dict):
            raise ValueError("its .json has no object with keys")
        return document

    def text(self, name: str) -> str | None:
        """The same as text."""
        value = self.value(name)
        return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_tags(value: Any) -> list[str] | None:
    """Names from a list, or from text with ``;`` or line breaks between them; None where nothing is known.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str):
        return [tag for part in TAG_SEPARATORS.split(value) if (tag := part.strip())]
    if value is None or (isinstance(value, list) and all(isinstance(tag, str) for tag in value)):
        return value
    raise ValueError(f"its tags are neither text nor a list of texts: {str(value)[:50]}")
