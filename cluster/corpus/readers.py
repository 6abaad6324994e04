"""Reading one file of a corpus, a tar shard, a table or an image file, as records."""

import io
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import shorten
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cliper.decode import IMAGE_ENDINGS
from cluster.storage import Location
from schemas.rows import Status

ZSTD_ENDING = ".tar.zst"
TABLE_BATCH_ROWS = 1
"""A single value may have hundreds of megabytes, and a small file may repeat it many times."""
HEADER_TYPES = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
MAX_HEADER_BYTES = 1_000_000
NOTHING_MORE = (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
"""What tarfile raises if less than a header follows."""
UNREACHABLE = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)
USUAL_IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "img", "content")


class Record(NamedTuple):
    """One image as it was found; ``data`` is None if ``status`` is a failure.

    The last record of a shard has ``shard_images``, the number of the shard's records, from which a later run sees that
    the shard is complete. In ``passed_over`` it has the number of members that are no images, by ending.
    """

    image_id: str
    uri: str
    shard: str
    data: bytes | None
    status: str = Status.OK
    error: str | None = None
    shard_images: int | None = None
    passed_over: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Shard:
    """A file with images.

    Attributes:
        name: its path relative to the input.
        path: its path on the file system.
        first_images: read only so many; None reads all.
        done: ids of images that have their row already and are passed over.
        version: what the storage says of its content; empty if that is not known.
        part, parts: of every ``parts`` images in a row, the reader takes the one at place ``part``.
    """

    name: str
    path: str
    first_images: int | None = None
    done: frozenset[str] = frozenset()
    version: str = ""
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

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Raises StorageFaultError."""
        try:
            return self.file.read(size)
        except Exception as error:
            raise StorageFaultError(error) from error


def read_image(root: Location, shard: Shard, max_bytes: int, passed_over: Counter[str]) -> Iterator[Record]:
    """The image of a file."""
    uri, name = names_of(root, shard)
    if root.fs.size(shard.path) > max_bytes:
        yield too_large(Record(name, uri, name, None), max_bytes)
    else:
        yield checked(Record(name, uri, name, root.fs.cat_file(shard.path)), max_bytes)


def read_tar(root: Location, shard: Shard, max_bytes: int, passed_over: Counter[str]) -> Iterator[Record]:
    """The images of a tar shard. Other members are added to ``passed_over``, by ending."""
    uri, name = names_of(root, shard)
    members = 0
    with root.fs.open(shard.path, "rb") as file:
        try:
            stored = StorageFile(file)
            stream = pa.CompressedInputStream(stored, "zstd") if shard.name.lower().endswith(ZSTD_ENDING) else stored
            for record in tar_members(stream, uri, name, max_bytes, passed_over):
                yield record
                members += 1
        except StorageFaultError as fault:
            raise fault.error from fault
        except Exception as error:  # tarfile and its decompressors raise almost anything on damaged bytes
            sentence = f"{uri}: the tar shard is damaged after {members} images: {shorten(str(error), 200)}"
            yield Record(name, uri, name, None, Status.BROKEN_SHARD, sentence)


def tar_members(
    file: StorageFile | pa.NativeFile, uri: str, name: str, max_bytes: int, passed_over: Counter[str]
) -> Iterator[Record]:
    """The images of a tar file, read as a stream, compressed or not."""
    seen: dict[str, int] = {}
    # Blocks of zeros end an archive, unless more follows: archives can be appended, and disks lose blocks.
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictTarInfo, ignore_zeros=True) as archive:
        for member in archive:
            if not is_image_member(member):
                if not member.isdir() and not is_hidden(member.name):
                    passed_over[ending_of(member.name)] += 1
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
        ended = getattr(archive, "after_zeros", False)
        archive.after_zeros = False  # type: ignore[attr-defined]
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            archive.after_zeros = True  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            if ended and isinstance(error, NOTHING_MORE):  # the regular end
                raise
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "StrictTarInfo":
        """Raises ReadError: extended headers are larger than any path needs. tarfile reads them into memory."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in HEADER_TYPES and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def is_image_member(member: tarfile.TarInfo) -> bool:
    """True for regular files with an image's ending that are not hidden (such as macOS's ``._`` companions)."""
    return member.isreg() and not is_hidden(member.name) and member.name.lower().endswith(IMAGE_ENDINGS)


def is_hidden(name: str) -> bool:
    """True for dot files; other programs' names that begin with ``_`` are images (``_MG_1234.JPG``)."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def ending_of(name: str) -> str:
    """The ending of a name, for counts of files that are passed over."""
    return utf8(posixpath.splitext(name)[1].lower()) or "without ending"


def read_table(root: Location, shard: Shard, max_bytes: int, passed_over: Counter[str]) -> Iterator[Record]:
    """The images of a table. Of a damaged row group one record tells."""
    uri, name = names_of(root, shard)
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
        stored_bytes, end = root.fs.size(shard.path), 0
        for group in range(file.num_row_groups):
            number, end = end, end + file.metadata.row_group(group).num_rows
            problem = f"a file of {stored_bytes:,} bytes cannot have so many images"
            if end - number <= stored_bytes:
                problem = "there are fewer rows than the file says"
                try:
                    for batch in file.iter_batches(TABLE_BATCH_ROWS, row_groups=[group], columns=[column]):
                        for value in image_bytes(batch.column(0)):
                            yield checked(Record(f"{name}/{number}", f"{uri}#row={number}", name, value), max_bytes)
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


def names_of(root: Location, shard: Shard) -> tuple[str, str]:
    """The address of a shard and its name, as rows have them."""
    return utf8(Location(root.fs, shard.path).url), utf8(shard.name)


def utf8(name: str) -> str:
    """A name that can be stored. Bytes that are not UTF-8 become ``\\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
