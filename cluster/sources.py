"""The corpus: which files hold images, and what each of them yields.

Every image becomes one record with an ``image_id`` that is unique over the corpus and the same on every run.
"""

import itertools
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import STORAGE_ERRORS, Location, storage_problem
from schemas.errors import RequestError
from schemas.rows import Status

CorpusFormat = Literal["tar", "parquet", "folder"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SUFFIXES: dict[CorpusFormat, tuple[str, ...]] = {
    "tar": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "folder": IMAGE_SUFFIXES,
}
MAX_FILE_BYTES = 256 * 1024**2
TABLE_BATCH_ROWS = 64
BROKEN_TAR = (tarfile.TarError, EOFError, zlib.error)
USUAL_IMAGE_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "img", "content")


class Record(NamedTuple):
    """One image as it was found; ``data`` is None if ``status`` is a failure."""

    image_id: str
    uri: str
    shard: str
    data: bytes | None
    status: str = Status.OK
    error: str | None = None


@dataclass(frozen=True)
class Shard:
    """A file with images.

    Attributes:
        name: its path relative to the input.
        path: its path on the file system.
        first_images: read only so many; None reads all.
    """

    name: str
    path: str
    first_images: int | None = None


@dataclass(frozen=True)
class Corpus:
    """The files of an input, sorted by name."""

    root: Location
    format: CorpusFormat
    shards: tuple[Shard, ...]


def list_corpus(
    root: Location, wanted: Literal["auto"] | CorpusFormat, output: Location, limit: int | None = None
) -> Corpus:
    """Find the files of an input: a folder or prefix, a single file, or a pattern with ``*``.

    Hidden files and everything below the output are passed over, and so are files of other kinds.

    Args:
        root: the input.
        wanted: the format, or ``auto`` to decide from the names' endings.
        output: where results go; never read as input.
        limit: use only the first so many images, counted in the order of names.

    Raises:
        RequestError: nothing there, nothing readable there, or several formats side by side.
    """
    try:
        base, names = list_names(root)
    except (*STORAGE_ERRORS, ValueError) as error:
        raise RequestError(f"--input {root.url}: {storage_problem(error)}") from error
    below_output = f"{output.path}/" if type(output.fs) is type(root.fs) else None
    if below_output and f"{base}/".startswith(below_output):
        raise RequestError(f"--input {root.url} lies in --output {output.url}: choose another folder for the output")
    shards: dict[CorpusFormat, list[Shard]] = {"tar": [], "parquet": [], "folder": []}
    for path in names:
        relative = posixpath.relpath(path, base)
        hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
        if hidden or (below_output and path.startswith(below_output)):
            continue
        for kind, suffixes in SUFFIXES.items():
            if path.lower().endswith(suffixes):
                shards[kind].append(Shard(relative, path))
    corpus_format = choose_format(root, wanted, shards)
    corpus = Corpus(root, corpus_format, tuple(sorted(shards[corpus_format], key=lambda shard: shard.name)))
    if corpus_format == "parquet":
        check_table(root, corpus.shards[0])
    return corpus if limit is None else limited(corpus, limit)


def list_names(root: Location) -> tuple[str, list[str]]:
    """The folder that names are relative to, and the paths of all files.

    Raises:
        OSError: the input cannot be listed or does not exist.
    """
    if any(character in root.path for character in "*?["):
        parts = root.path.split("/")
        fixed = list(itertools.takewhile(lambda part: not any(character in part for character in "*?["), parts))
        return "/".join(fixed), [str(path) for path in root.fs.glob(root.path)]
    if root.fs.isfile(root.path):
        return posixpath.dirname(root.path), [root.path]
    if not root.fs.exists(root.path):
        raise FileNotFoundError(root.path)
    return root.path, [str(path) for path in root.fs.find(root.path)]


def choose_format(
    root: Location, wanted: Literal["auto"] | CorpusFormat, shards: dict[CorpusFormat, list[Shard]]
) -> CorpusFormat:
    """The format asked for, or the only one that is there."""
    if wanted != "auto":
        if not shards[wanted]:
            endings = ", ".join(SUFFIXES[wanted])
            raise RequestError(f"--input {root.url} has no files for --format {wanted} (their names end in {endings})")
        return wanted
    found = [kind for kind, members in shards.items() if members]
    if not found:
        raise RequestError(f"--input {root.url} is empty: it has no tar shards, no Parquet tables and no image files")
    if len(found) > 1:
        raise RequestError(
            f"--input {root.url} has files of several formats: choose one with --format {' or '.join(found)}"
        )
    return found[0]


def check_table(root: Location, shard: Shard) -> None:
    """Raises RequestError if the first table has no image column; damaged tables are left to the run."""
    try:
        with pq.ParquetFile(root.fs.open(shard.path, "rb")) as file:
            schema = file.schema_arrow
    except (pa.ArrowException, OSError):
        return
    try:
        image_column(schema)
    except ValueError as error:
        raise RequestError(f"--input {Location(root.fs, shard.path).url}: {error}") from error


def limited(corpus: Corpus, limit: int) -> Corpus:
    """The corpus's first ``limit`` images; shards are looked into until there are enough."""
    shards: list[Shard] = []
    for shard in corpus.shards:
        if limit <= 0:
            break
        records = read_shard(corpus, replace(shard, first_images=limit)) if corpus.format != "folder" else [None]
        count = sum(1 for _ in records)
        shards.append(replace(shard, first_images=min(count, limit)))
        limit -= count
    return replace(corpus, shards=tuple(shards))


def read_shard(corpus: Corpus, shard: Shard) -> Iterator[Record]:
    """The images of one file.

    What is damaged becomes a record with a failure status; what cannot be reached raises, so that no image is given
    up because of a passing fault of the storage.

    Raises:
        OSError: the storage failed.
    """
    readers = {"tar": read_tar, "parquet": read_table, "folder": read_image}
    return itertools.islice(readers[corpus.format](corpus.root, shard), shard.first_images)


def read_image(root: Location, shard: Shard) -> Iterator[Record]:
    uri = Location(root.fs, shard.path).url
    name = utf8(shard.name)
    try:
        if root.fs.size(shard.path) > MAX_FILE_BYTES:
            yield too_large(name, uri, name)
        else:
            yield checked(Record(name, uri, name, root.fs.cat_file(shard.path)))
    except FileNotFoundError:
        yield Record(name, uri, name, None, Status.MISSING, f"{uri}: the file is no longer there")


def read_tar(root: Location, shard: Shard) -> Iterator[Record]:
    uri, name = Location(root.fs, shard.path).url, utf8(shard.name)
    seen: dict[str, int] = {}
    members = 0
    try:
        with root.fs.open(shard.path, "rb") as file, open_tar(file) as archive:
            for member in archive:
                if not is_image_member(member):
                    continue
                member_name = utf8(member.name)
                occurrence = seen[member_name] = seen.get(member_name, 0) + 1
                image_id = f"{name}/{member_name}" + (f"#{occurrence}" if occurrence > 1 else "")
                member_uri = f"tar://{member_name}::{uri}"
                if member.size > MAX_FILE_BYTES:
                    yield too_large(image_id, member_uri, name)
                else:
                    content = archive.extractfile(member)
                    assert content is not None, "regular files have content"
                    yield checked(Record(image_id, member_uri, name, content.read()))
                members += 1
    except BROKEN_TAR as error:
        sentence = f"{uri}: the tar shard is damaged after {members} images: {error}"
        yield Record(name, uri, name, None, Status.BROKEN_SHARD, sentence)


class StrictTarInfo(tarfile.TarInfo):
    """Reads members like its base, but does not take a damaged or missing header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "StrictTarInfo":
        """Raises ReadError where tarfile would stop without a word."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark at the end of a whole archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


def open_tar(file: IO[bytes]) -> tarfile.TarFile:
    """A tar file as a stream, compressed or not."""
    return tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictTarInfo)


def is_image_member(member: tarfile.TarInfo) -> bool:
    """Regular files with an image's ending; hidden files (such as macOS's ``._`` companions) are none."""
    hidden = posixpath.basename(member.name).startswith(".")
    return member.isreg() and not hidden and member.name.lower().endswith(IMAGE_SUFFIXES)


def read_table(root: Location, shard: Shard) -> Iterator[Record]:
    uri, name = Location(root.fs, shard.path).url, utf8(shard.name)
    try:
        file = pq.ParquetFile(root.fs.open(shard.path, "rb"))
        column = image_column(file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_storage_failure(error)
        yield Record(name, uri, name, None, Status.BROKEN_SHARD, f"{uri}: the table cannot be read: {error}")
        return
    with file:
        end = 0
        for group in range(file.num_row_groups):
            number, end = end, end + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(TABLE_BATCH_ROWS, row_groups=[group], columns=[column]):
                    for value in image_bytes(batch.column(0)):
                        yield checked(Record(f"{name}/{number}", f"{uri}#row={number}", name, value))
                        number += 1
            except (pa.ArrowException, OSError) as error:
                raise_storage_failure(error)
                for lost in range(number, end):
                    sentence = f"{uri}: row group {group} is damaged: {error}"
                    yield Record(f"{name}/{lost}", f"{uri}#row={lost}", name, None, Status.BROKEN_SHARD, sentence)


def raise_storage_failure(error: BaseException) -> None:
    """Raise errors of the storage again (they carry an error number); damaged contents come without one."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def image_column(schema: pa.Schema) -> str:
    """The column with image bytes: a usual name if there is one, else the only binary (or ``{bytes, path}``) column.

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


def checked(record: Record) -> Record:
    """The record, or a failure if it has no bytes or too many."""
    if not record.data:
        return record._replace(data=None, status=Status.EMPTY, error=f"{record.uri}: there are no bytes")
    if len(record.data) > MAX_FILE_BYTES:
        return too_large(record.image_id, record.uri, record.shard)
    return record


def too_large(image_id: str, uri: str, shard: str) -> Record:
    return Record(image_id, uri, shard, None, Status.TOO_LARGE, f"{uri}: more than {MAX_FILE_BYTES} bytes")


def utf8(name: str) -> str:
    """A name that can be stored: bytes that are not UTF-8 are written as ``\\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
