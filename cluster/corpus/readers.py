"""Reading one file of a corpus, a tar shard, a table or an image file, as records."""

import io
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import shorten
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Location
from schemas.rows import Status

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
TABLE_BATCH_ROWS = 64
UNREACHABLE = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)
USUAL_IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "img", "content")


class Record(NamedTuple):
    """One image as it was found; ``data`` is None if ``status`` is a failure.

    ``shard_images`` is the number of the shard's images, on its last one. A later run sees from it that the shard is
    complete.
    """

    image_id: str
    uri: str
    shard: str
    data: bytes | None
    status: str = Status.OK
    error: str | None = None
    shard_images: int | None = None


@dataclass(frozen=True)
class Shard:
    """A file with images.

    Attributes:
        name: its path relative to the input.
        path: its path on the file system.
        first_images: read only so many; None reads all.
        done: ids of images that have their row already and are passed over.
        part, parts: of every ``parts`` images in a row, the reader takes the one at place ``part``.
    """

    name: str
    path: str
    first_images: int | None = None
    done: frozenset[str] = frozenset()
    part: int = 0
    parts: int = 1


class StorageFaultError(Exception):
    """The storage failed with ``error`` during a read."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class StorageFile(io.RawIOBase):
    """An open file whose own errors can be told apart from errors of its reader."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        """Raises StorageFaultError."""
        try:
            return self.file.read(size)
        except Exception as error:
            raise StorageFaultError(error) from error


def read_image(root: Location, shard: Shard, max_bytes: int) -> Iterator[Record]:
    uri = Location(root.fs, shard.path).url
    name = utf8(shard.name)
    if root.fs.size(shard.path) > max_bytes:
        yield too_large(Record(name, uri, name, None), max_bytes)
    else:
        yield checked(Record(name, uri, name, root.fs.cat_file(shard.path)), max_bytes)


def read_tar(root: Location, shard: Shard, max_bytes: int) -> Iterator[Record]:
    uri, name = Location(root.fs, shard.path).url, utf8(shard.name)
    members = 0
    with root.fs.open(shard.path, "rb") as file:
        try:
            for record in tar_members(StorageFile(file), uri, name, max_bytes):
                yield record
                members += 1
        except StorageFaultError as fault:
            raise fault.error from fault
        except Exception as error:  # tarfile and its decompressors raise almost anything on damaged bytes
            sentence = f"{uri}: the tar shard is damaged after {members} images: {shorten(str(error), 200)}"
            yield Record(name, uri, name, None, Status.BROKEN_SHARD, sentence)


def tar_members(file: StorageFile, uri: str, name: str, max_bytes: int) -> Iterator[Record]:
    """The images of a tar file, read as a stream, compressed or not."""
    seen: dict[str, int] = {}
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictTarInfo) as archive:
        for member in archive:
            if not is_image_member(member):
                continue
            member_name = utf8(member.name)
            occurrence = seen[member_name] = seen.get(member_name, 0) + 1
            image_id = f"{name}/{member_name}" + (f"#{occurrence}" if occurrence > 1 else "")
            record = Record(image_id, f"tar://{member_name}::{uri}", name, None)
            if member.size > max_bytes:
                yield too_large(record, max_bytes)
            else:
                content = archive.extractfile(member)
                assert content is not None, "regular files have content"
                yield checked(record._replace(data=content.read()), max_bytes)


class StrictTarInfo(tarfile.TarInfo):
    """Like its base, but a damaged or missing header is an error and not the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "StrictTarInfo":
        """Raises ReadError where tarfile would stop silently."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the regular end of an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


def is_image_member(member: tarfile.TarInfo) -> bool:
    """True for regular files with an image's ending that are not hidden (such as macOS's ``._`` companions)."""
    hidden = posixpath.basename(member.name).startswith(".")
    return member.isreg() and not hidden and member.name.lower().endswith(IMAGE_SUFFIXES)


def read_table(root: Location, shard: Shard, max_bytes: int) -> Iterator[Record]:
    uri, name = Location(root.fs, shard.path).url, utf8(shard.name)
    try:
        file = pq.ParquetFile(root.fs.open(shard.path, "rb"))
        column = image_column(file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_storage_failure(error)
        yield Record(
            name, uri, name, None, Status.BROKEN_SHARD, f"{uri}: the table cannot be read: {shorten(str(error), 200)}"
        )
        return
    with file:
        end = 0
        for group in range(file.num_row_groups):
            number, end = end, end + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(TABLE_BATCH_ROWS, row_groups=[group], columns=[column]):
                    for value in image_bytes(batch.column(0)):
                        yield checked(Record(f"{name}/{number}", f"{uri}#row={number}", name, value), max_bytes)
                        number += 1
            except (pa.ArrowException, OSError) as error:
                raise_storage_failure(error)
                for lost in range(number, end):
                    sentence = f"{uri}: row group {group} is damaged: {shorten(str(error), 200)}"
                    yield Record(f"{name}/{lost}", f"{uri}#row={lost}", name, None, Status.BROKEN_SHARD, sentence)


def raise_storage_failure(error: BaseException) -> None:
    """Raise errors of the storage again: they have a known type or an errno; errors of damaged files do not."""
    if isinstance(error, UNREACHABLE) or (isinstance(error, OSError) and error.errno is not None):
        raise error


def image_column(schema: pa.Schema) -> str:
    """The column with image bytes: one with a usual name, else the only binary (or ``{bytes, path}``) column.

    Raises:
        ValueError: none, or several and none of a usual name.
    """
    candidates = [field.name for field in schema if is_binary(image_type(field.type))]
    usual = [name for name in USUAL_IMAGE_COLUMNS if name in candidates]
    if usual:
        return usual[0]
    if len(candidates) == 1:
        return candidates[0]
    found = f"several binary columns ({', '.join(candidates)})" if candidates else "no binary column"
    raise ValueError(f"it has {found}: name the image column image")


def image_type(column_type: pa.DataType) -> pa.DataType:
    """The bytes' type: of the column, or of the field ``bytes`` of Hugging Face's ``{bytes, path}`` struct."""
    is_pair = pa.types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0
    return column_type.field("bytes").type if is_pair else column_type


def is_binary(data_type: pa.DataType) -> bool:
    return pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type)


def image_bytes(column: pa.Array) -> Iterator[bytes | None]:
    if pa.types.is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]  # flatten keeps the struct's nulls
    return (value.as_py() for value in column)


def checked(record: Record, max_bytes: int) -> Record:
    """The record, or a failure if it has no bytes or too many."""
    if not record.data:
        return record._replace(data=None, status=Status.EMPTY, error=f"{record.uri}: there are no bytes")
    return too_large(record, max_bytes) if len(record.data) > max_bytes else record


def too_large(record: Record, max_bytes: int) -> Record:
    return record._replace(
        data=None, status=Status.TOO_LARGE, error=f"{record.uri}: more than {max_bytes:,} bytes (--max-file-mb)"
    )


def utf8(name: str) -> str:
    """A name that can be stored. Bytes that are not UTF-8 become ``\\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
