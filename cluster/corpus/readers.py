"""Reading one file of a corpus as records: a table or an image file here, a tar shard in `cluster.corpus.tars`."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.corpus.columns import Beside, Columns, beside_image, image_bytes
from cluster.storage import Location
from schemas.rows import Status

TABLE_BATCH_ROWS = 1
"""A single value may have hundreds of megabytes, and a small file may repeat it many times."""
UNREACHABLE = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)


class Record(NamedTuple):
    """One image as it was found; ``data`` is None if ``status`` is a failure.

    The last record of a shard has ``shard_images``, the number of the shard's records, from which a later run sees that
    the shard is complete. In ``passed_over`` it has the number of members that are no images, by ending. ``beside`` has
    what `cluster.corpus.columns.Columns` asks for.
    """

    image_id: str
    uri: str
    shard: str
    data: bytes | None
    status: str = Status.OK
    error: str | None = None
    shard_images: int | None = None
    passed_over: list[dict[str, Any]] | None = None
    beside: Beside | None = None


@dataclass(frozen=True)
class Shard:
    """A file with images.

    Attributes:
        name: its path relative to the input.
        path: its path on the file system.
        first_images: read only so many; None reads all.
        only: ids of the images to read; None reads all.
        done: ids of images that have their row already and are passed over.
        version: what the storage says of its content; empty if that is not known.
        part, parts: of every ``parts`` images in a row, the reader takes the one at place ``part``.
        siblings: of an image file, the paths of its siblings by ending.
    """

    name: str
    path: str
    first_images: int | None = None
    only: frozenset[str] | None = None
    done: frozenset[str] = frozenset()
    version: str = ""
    part: int = 0
    parts: int = 1
    siblings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Attributes:
        columns: what is read of it.
        max_bytes: of an image, and of each of its siblings.
        passed_over: gets the number of members that are no images and were not read, by ending.
    """

    columns: Columns
    max_bytes: int
    passed_over: Counter[str] = field(default_factory=Counter)


def read_image(root: Location, shard: Shard, reading: Reading) -> Iterator[Record]:
    """The image of a file."""
    uri, name = names_of(root, shard)
    record = Record(name, uri, name, None)
    if root.fs.size(shard.path) > reading.max_bytes:
        yield too_large(record, reading.max_bytes)
        return
    record = checked(record._replace(data=root.fs.cat_file(shard.path)), reading.max_bytes)
    siblings: dict[str, bytes | int] = {}
    for ending, path in shard.siblings:
        size = root.fs.size(path)
        siblings[ending] = size if size > reading.max_bytes else root.fs.cat_file(path)
    yield with_siblings(record, siblings, reading)


def with_siblings(image: Record, siblings: Mapping[str, bytes | int], reading: Reading) -> Record:
    """The record with its siblings, or a failure if one is too large."""
    contents = {ending: content for ending, content in siblings.items() if isinstance(content, bytes)}
    if image.data is not None and len(contents) < len(siblings):
        ending = min(siblings.keys() - contents.keys())
        reason = f"{image.uri}: its .{ending} has more than {reading.max_bytes:,} bytes (--max-file-mb)"
        return image._replace(data=None, status=Status.BAD_COLUMN, error=reason)
    return image._replace(beside=contents)


def is_hidden(name: str) -> bool:
    """True for dot files; other programs' names that begin with ``_`` are images (``_MG_1234.JPG``)."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def ending_of(name: str) -> str:
    """The ending of a name, for counts of files that are passed over."""
    return utf8(posixpath.splitext(name)[1].lower()) or "without ending"


def read_table(root: Location, shard: Shard, reading: Reading) -> Iterator[Record]:
    """The images of a table. Of a damaged row group one record tells."""
    uri, name = names_of(root, shard)
    try:
        file = pq.ParquetFile(root.fs.open(shard.path, "rb"))
        image, beside = reading.columns.of_table(file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_storage_failure(error)
        yield Record(
            name, uri, name, None, Status.BROKEN_SHARD, f"{uri}: the table cannot be read: {shorten(str(error), 200)}"
        )
        return
    with file:
        stored_bytes, end = root.fs.size(shard.path), 0
        for group in range(file.num_row_groups):
            number, end = end, end + file.metadata.row_group(group).num_rows
            problem = f"a file of {stored_bytes:,} bytes cannot have so many images"
            if end - number <= stored_bytes:
                problem = "there are fewer rows than the file says"
                try:
                    for batch in file.iter_batches(TABLE_BATCH_ROWS, row_groups=[group], columns=[image, *beside]):
                        for value in image_bytes(batch.column(image)):
                            record = Record(f"{name}/{number}", f"{uri}#row={number}", name, value)
                            row = beside_image(batch, reading.columns, image, beside)
                            yield checked(record._replace(beside=row), reading.max_bytes)
                            number += 1
                except (pa.ArrowException, OSError) as error:
                    raise_storage_failure(error)
                    problem = shorten(str(error), 200)
            if number < end:
                lost = f"{number}-{end - 1}"
                sentence = f"{uri}: row group {group} is damaged, rows {lost} are lost: {problem}"
                yield Record(f"{name}/{lost}", f"{uri}#row={number}", name, None, Status.BROKEN_SHARD, sentence)


def raise_storage_failure(error: BaseException) -> None:
    """Raise errors of the storage again: they have a known type or an errno; errors of damaged files do not."""
    if isinstance(error, UNREACHABLE) or (isinstance(error, OSError) and error.errno is not None):
        raise error


def checked(record: Record, max_bytes: int) -> Record:
    """The record, or a failure if it has no bytes or too many."""
    if not record.data:
        return record._replace(data=None, status=Status.EMPTY, error=f"{record.uri}: there are no bytes")
    return too_large(record, max_bytes) if len(record.data) > max_bytes else record


def too_large(record: Record, max_bytes: int) -> Record:
    return record._replace(
        data=None, status=Status.TOO_LARGE, error=f"{record.uri}: more than {max_bytes:,} bytes (--max-file-mb)"
    )


def names_of(root: Location, shard: Shard) -> tuple[str, str]:
    """The address of a shard and its name, as rows have them."""
    return utf8(Location(root.fs, shard.path).url), utf8(shard.name)


def utf8(name: str) -> str:
    """A name that can be stored. Bytes that are not UTF-8 become ``\\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
