"""The corpus: which files hold images.

Every image becomes one record with an ``image_id`` that is unique over the corpus and the same on every run.
"""

import itertools
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.corpus.limits import DEFAULT_LIMITS, Limits
from cluster.corpus.readers import IMAGE_SUFFIXES, Record, Shard, image_column, read_image, read_table, read_tar, utf8
from cluster.storage import STORAGE_ERRORS, Location, storage_problem
from schemas.errors import RequestError
from schemas.rows import Status

CorpusFormat = Literal["tar", "parquet", "folder"]

SUFFIXES: dict[CorpusFormat, tuple[str, ...]] = {
    "tar": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "folder": IMAGE_SUFFIXES,
}


@dataclass(frozen=True)
class Corpus:
    """The files of an input, sorted by name."""

    root: Location
    format: CorpusFormat
    shards: tuple[Shard, ...]
    limits: Limits = DEFAULT_LIMITS


def list_corpus(
    root: Location,
    wanted: Literal["auto"] | CorpusFormat,
    output: Location | None,
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Corpus:
    """Find the files of an input: a folder or prefix, a single file, or a pattern with ``*``.

    Hidden files, everything below the output and files of other kinds are passed over.

    Args:
        root: the input.
        wanted: the format, or ``auto`` to decide from the names' endings.
        output: where results go, if anywhere; never read as input.
        limit: use only the first so many images, counted in the order of names.
        limits: on single images.

    Raises:
        RequestError: nothing there, nothing readable there, or several formats side by side.
    """
    try:
        base, names = list_names(root)
    except (*STORAGE_ERRORS, ValueError) as error:
        raise RequestError(f"{root}: {storage_problem(error)}") from error
    below_output = f"{output.path}/" if output and type(output.fs) is type(root.fs) else None
    if output and below_output and f"{base}/".startswith(below_output):
        raise RequestError(f"{root} lies in {output}: choose another folder for the output")
    shards: dict[CorpusFormat, list[Shard]] = {"tar": [], "parquet": [], "folder": []}
    for path in names:
        relative = posixpath.relpath(path, base)
        hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
        if hidden or (below_output and path.startswith(below_output)):
            continue
        if kind := format_of(path):
            shards[kind].append(Shard(relative, path))
    corpus_format = choose_format(root, wanted, shards)
    corpus = Corpus(root, corpus_format, tuple(sorted(shards[corpus_format], key=lambda shard: shard.name)), limits)
    if corpus_format == "parquet":
        check_table(root, corpus.shards[0])
    return corpus if limit is None else limited(corpus, limit)


def format_of(name: str) -> CorpusFormat | None:
    """The format of a corpus's file, from the ending of its name; None for files of other kinds."""
    return next((kind for kind, suffixes in SUFFIXES.items() if name.lower().endswith(suffixes)), None)


def file_address(shard: str, uri: str) -> str:
    """The address of the file that holds an image, from the ``shard`` and ``uri`` of its row."""
    match format_of(shard):
        case "tar":
            return uri.rpartition("::")[2]
        case "parquet":
            return uri.rpartition("#row=")[0]
        case _:
            return uri


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
    """The format asked for, or the only one found."""
    if wanted != "auto":
        if not shards[wanted]:
            endings = ", ".join(SUFFIXES[wanted])
            raise RequestError(f"{root} has no files for --format {wanted} (their names end in {endings})")
        return wanted
    found = [kind for kind, members in shards.items() if members]
    if not found:
        raise RequestError(f"{root} is empty: it has no tar shards, no Parquet tables and no image files")
    if len(found) > 1:
        raise RequestError(f"{root} has files of several formats: choose one with --format {' or '.join(found)}")
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
        raise RequestError(f"{replace(root, path=shard.path)}: {error}") from error


def limited(corpus: Corpus, limit: int) -> Corpus:
    """The corpus's first ``limit`` images. Shards are counted until there are enough."""
    shards: list[Shard] = []
    for shard in corpus.shards:
        if limit <= 0:
            break
        records = read_shard(corpus, replace(shard, first_images=limit)) if corpus.format != "folder" else [None]
        count = sum(1 for _ in records)
        shards.append(replace(shard, first_images=min(count, limit)))
        limit -= count
    return replace(corpus, shards=tuple(shards))


def sampled(corpus: Corpus, images: int) -> Corpus:
    """About so many images, spread over the corpus: the first images of evenly spaced shards."""
    count = min(images, len(corpus.shards))
    chosen = [corpus.shards[number * len(corpus.shards) // count] for number in range(count)]
    each = [(number + 1) * images // count - number * images // count for number in range(count)]
    shards = (replace(shard, first_images=share) for shard, share in zip(chosen, each, strict=True))
    return replace(corpus, shards=tuple(shards))


def read_shard(corpus: Corpus, shard: Shard) -> Iterator[Record]:
    """The images of one file.

    What is damaged, missing or forbidden becomes a record with a failure status. A storage that does not answer raises:
    no image is given up because of a transient fault.

    Raises:
        OSError: the storage failed.
    """
    readers = {"tar": read_tar, "parquet": read_table, "folder": read_image}
    records = reachable(readers[corpus.format](corpus.root, shard, corpus.limits.max_file_bytes), corpus.root, shard)
    return counted(itertools.islice(records, shard.first_images))


def is_empty(corpus: Corpus, shard: Shard) -> bool:
    """True if a file holds no image at all."""
    return next(read_shard(corpus, shard), None) is None


def reachable(records: Iterator[Record], root: Location, shard: Shard) -> Iterator[Record]:
    """The same records, followed by a failure if the shard is not there or may not be read."""
    uri, name = Location(root.fs, shard.path).url, utf8(shard.name)
    try:
        yield from records
    except FileNotFoundError:
        yield Record(name, uri, name, None, Status.MISSING, f"{uri}: the file is no longer there")
    except PermissionError:
        yield Record(name, uri, name, None, Status.FORBIDDEN, f"{uri}: access is denied")


def counted(records: Iterator[Record]) -> Iterator[Record]:
    """The same records, the last one with their number."""
    held, count = None, 0
    for record in records:
        if held is not None:
            yield held
        held, count = record, count + 1
    if held is not None:
        yield held._replace(shard_images=count)
