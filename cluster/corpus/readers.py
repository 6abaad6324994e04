"""Reading one file of a corpus, a tar shard, a table or an image file, as records."""

import io
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.corpus.columns import Beside, Columns, beside_image, image_bytes, sample_of
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
MAX_SAMPLE_IMAGES = 64
"""Images of a sample in a tar shard; while siblings are read, they are in memory together."""


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


def read_tar(root: Location, shard: Shard, reading: Reading) -> Iterator[Record]:
    """The images of a tar shard."""
    uri, name = names_of(root, shard)
    members = 0
    with root.fs.open(shard.path, "rb") as file:
        try:
            stored = StorageFile(file)
            stream = pa.CompressedInputStream(stored, "zstd") if shard.name.lower().endswith(ZSTD_ENDING) else stored
            for record in tar_members(stream, uri, name, reading):
                yield record
                members += 1
        except StorageFaultError as fault:
            raise fault.error from fault
        except Exception as error:  # tarfile and its decompressors raise almost anything on damaged bytes
            sentence = f"{uri}: the tar shard is damaged after {members} images: {shorten(str(error), 200)}"
            yield Record(name, uri, name, None, Status.BROKEN_SHARD, sentence)


def tar_members(file: StorageFile | pa.NativeFile, uri: str, name: str, reading: Reading) -> Iterator[Record]:
    """The images of a tar file, read as a stream, compressed or not.

    Raises:
        ValueError: a sample has too many images, while siblings are read.
    """
    seen: dict[str, int] = {}
    sample = Sample("", reading)
    # Blocks of zeros end an archive, unless more follows: archives can be appended, and disks lose blocks.
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictTarInfo, ignore_zeros=True) as archive:
        try:
            for member in archive:
                if member.isdir() or is_hidden(member.name):  # such as macOS's "._" companions
                    continue
                key, ending = sample_of(member.name)
                if key != sample.key:
                    yield from sample.records()
                    sample = Sample(key, reading)
                if not (member.isreg() and reading.columns.is_image(member.name)):
                    sibling = reading.columns.sibling(ending) if member.isreg() else None
                    if sibling is not None:
                        sample.siblings[sibling] = content_of(archive, member, reading.max_bytes)
                    else:
                        reading.passed_over[ending_of(member.name)] += 1
                    continue
                member_name = utf8(member.name)
                occurrence = seen[member_name] = seen.get(member_name, 0) + 1
                image_id = f"{name}/{member_name}" + (f"#{occurrence}" if occurrence > 1 else "")
                record = Record(image_id, f"tar://{member_name}::{uri}", name, None)
                content = content_of(archive, member, reading.max_bytes)
                if isinstance(content, int):
                    record = too_large(record, reading.max_bytes)
                else:
                    record = checked(record._replace(data=content), reading.max_bytes)
                if reading.columns.siblings:
                    sample.add(record)
                else:
                    yield record
        except Exception:  # the shard is damaged, and these images are not
            yield from sample.records()
            raise
        yield from sample.records()


@dataclass
class Sample:
    """Consecutive members of a tar shard with one name: images and their siblings."""

    key: str
    reading: Reading
    images: list[Record] = field(default_factory=list)
    siblings: dict[str, bytes | int] = field(default_factory=dict)

    def add(self, image: Record) -> None:
        """Raises ValueError: there are too many."""
        if len(self.images) == MAX_SAMPLE_IMAGES:
            raise ValueError(
                f"more than {MAX_SAMPLE_IMAGES} images are called {self.key}: what is beside each cannot be told"
            )
        self.images.append(image)

    def records(self) -> Iterator[Record]:
        """The images. Siblings of none are passed over."""
        if not self.images:
            self.reading.passed_over.update(ending_of(f"{self.key}.{sibling}") for sibling in self.siblings)
        for image in self.images:
            yield with_siblings(image, self.siblings, self.reading)


def content_of(archive: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | int:
    """The content of a regular member; its size if it is too large."""
    if member.size > max_bytes:
        return member.size
    content = archive.extractfile(member)
    assert content is not None, "regular files have content"
    return content.read()


def with_siblings(image: Record, siblings: Mapping[str, bytes | int], reading: Reading) -> Record:
    """The record with its siblings, or a failure if one is too large."""
    contents = {ending: content for ending, content in siblings.items() if isinstance(content, bytes)}
    if image.data is not None and len(contents) < len(siblings):
        ending = min(siblings.keys() - contents.keys())
        reason = f"{image.uri}: its .{ending} has more than {reading.max_bytes:,} bytes (--max-file-mb)"
        return image._replace(data=None, status=Status.BAD_COLUMN, error=reason)
    return image._replace(beside=contents)


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
