"""Reading a tar shard as records, as a stream, compressed or not."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from textwrap import shorten
from typing import IO

import pyarrow as pa

from cluster.corpus.columns import sample_of
from cluster.corpus.readers import (
    Reading,
    Record,
    Shard,
    checked,
    ending_of,
    is_hidden,
    names_of,
    too_large,
    utf8,
    with_siblings,
)
from cluster.storage import Location
from schemas.rows import Status

ZSTD_ENDING = ".tar.zst"
HEADER_TYPES = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
MAX_HEADER_BYTES = 1_000_000
NOTHING_MORE = (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
"""What tarfile raises if less than a header follows."""
MAX_SAMPLE_IMAGES = 64
"""Images of a sample in a tar shard; while siblings are read, they are in memory together."""


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
