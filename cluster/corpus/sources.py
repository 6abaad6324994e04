"""The corpus: which files hold images.

Every image becomes one record with an ``image_id`` that is unique over the corpus and the same on every run.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cliper.decode import IMAGE_ENDINGS
from cluster.corpus.columns import Columns, Kept, sample_of
from cluster.corpus.inputs import Input, list_files, version_of
from cluster.corpus.limits import DEFAULT_LIMITS, Limits
from cluster.corpus.readers import (
    Reading,
    Record,
    Shard,
    ending_of,
    is_hidden,
    names_of,
    read_image,
    read_table,
    utf8,
)
from cluster.corpus.tars import ZSTD_ENDING, read_tar
from cluster.storage import Location
from schemas.errors import RequestError
from schemas.rows import Status

CorpusFormat = Literal["tar", "parquet", "folder"]

VERSION_MARK = "?versionId="
"""s3fs takes what follows it in a name for the version of another key."""

SUFFIXES: dict[CorpusFormat, tuple[str, ...]] = {
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ZSTD_ENDING),
    "parquet": (".parquet",),
    "folder": IMAGE_ENDINGS,
}
ALL_IMAGES = Columns()
OF_SHARDS = (Status.BROKEN_SHARD, Status.MISSING, Status.FORBIDDEN)
"""Failures of records that stand for a whole file."""
CHECKPOINT = "_checkpoint"
"""The folder in an output with names of rows files; its tables hold no images."""


@dataclass(frozen=True)
class Corpus:
    """The files of an input, sorted by name.

    Attributes:
        root: the input, or the folder above a list's addresses.
        format: of its files.
        shards: its files.
        limits: on single images.
        passed_over: files of other kinds, counted by the ending of their names.
        columns: what is read of the files.
    """

    root: Location
    format: CorpusFormat
    shards: tuple[Shard, ...]
    limits: Limits = DEFAULT_LIMITS
    passed_over: Mapping[str, int] = field(default_factory=dict)
    columns: Columns = ALL_IMAGES


def list_corpus(
    source: Input,
    wanted: Literal["auto"] | CorpusFormat,
    output: Location | None,
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    columns: Columns = ALL_IMAGES,
) -> Corpus:
    """Find the files of an input: a folder or prefix, a single file, a pattern with ``*``, ``?``, ``[...]`` or
    ``{00..99}``, or several of these.

    Dot files, checkpoints of outputs and everything below the output are hidden. Files of other kinds are counted.

    Args:
        source: the input.
        wanted: the format, or ``auto`` to decide from the names' endings.
        output: where results go, if anywhere; never read as input.
        limit: use only the first so many images, counted in the order of names.
        limits: on single images.
        columns: what is read of the files.

    Raises:
        RequestError: nothing there, nothing readable there, several formats side by side, or a table without a column
            that is asked for.
    """
    base, files = list_files(source)
    root = replace(source.places[0], path=base) if source.address.startswith("@") else source.places[0]
    below_output = f"{output.path}/" if output and type(output.fs) is type(root.fs) else None
    if output and below_output and f"{base}/".startswith(below_output):
        raise RequestError(f"{source} lies in {output}: choose another folder for the output")
    shards: defaultdict[CorpusFormat | None, list[Shard]] = defaultdict(list)
    for path, info in files.items():
        relative = path.removeprefix(f"{base.rstrip('/')}/")  # relpath would make one name of a//b and a/b
        if is_hidden(relative) or CHECKPOINT in relative.split("/") or (below_output and path.startswith(below_output)):
            continue
        kind = format_of(path)
        wanted_kind = None if kind == "folder" and not columns.is_image(path) else kind
        shards[wanted_kind].append(Shard(relative, path, version=version_of(info)))
    corpus_format = choose_format(source, wanted, shards)
    members = sorted(shards.pop(corpus_format), key=lambda shard: shard.name)
    others = list(chain.from_iterable(shards.values()))
    if corpus_format == "folder" and columns.siblings:
        members, others = find_siblings(members, others, columns)
    corpus = Corpus(root, corpus_format, tuple(members), limits, counted_endings(others), columns)
    if corpus_format == "parquet":
        check_table(root, corpus.shards[0], columns)
    return corpus if limit is None else limited(corpus, limit)


def find_siblings(images: list[Shard], others: list[Shard], columns: Columns) -> tuple[list[Shard], list[Shard]]:
    """Image files with their siblings, and the other files that are none."""
    siblings: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    samples, left = {sample_of(image.name)[0] for image in images}, []
    for other in others:
        sample, ending = sample_of(other.name)
        sibling = columns.sibling(ending)
        if sample in samples and sibling is not None:
            siblings[sample].append((sibling, other.path))
        else:
            left.append(other)
    return [replace(image, siblings=tuple(siblings[sample_of(image.name)[0]])) for image in images], left


def passed_over_sentence(passed_over: Mapping[str, int]) -> str:
    """Files or members that are no images, in words."""
    total = sum(passed_over.values())
    counts = ", ".join(
        f"{count:,} {ending}" for ending, count in sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    )
    return f"passed over: {total:,} file{'s' * (total != 1)}: {counts}"


def in_brackets(passed_over: Mapping[str, int]) -> str:
    """The same as an addition to a sentence; nothing if nothing was passed over."""
    return f" ({passed_over_sentence(passed_over)})" if passed_over else ""


def counted_endings(shards: Iterable[Shard]) -> Counter[str]:
    """Files counted by the ending of their names."""
    return Counter(ending_of(shard.name) for shard in shards)


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


def choose_format(
    source: Input, wanted: Literal["auto"] | CorpusFormat, shards: Mapping[CorpusFormat | None, list[Shard]]
) -> CorpusFormat:
    """The format asked for, or the only one found."""
    others = in_brackets(counted_endings(shards.get(None, ())))
    if wanted != "auto":
        if wanted not in shards:
            endings = ", ".join(SUFFIXES[wanted])
            raise RequestError(f"{source} has no files for --format {wanted} (their names end in {endings}){others}")
        return wanted
    found = [kind for kind in SUFFIXES if kind in shards]
    if not found:
        raise RequestError(f"{source} is empty: it has no tar shards, no Parquet tables and no image files{others}")
    if len(found) > 1:
        raise RequestError(f"{source} has files of several formats: choose one with --format {' or '.join(found)}")
    return found[0]


def check_table(root: Location, shard: Shard, columns: Columns) -> None:
    """Raises RequestError if the first table lacks a column; damaged tables are left to the run."""
    schema = table_schema(root, shard)
    try:
        if schema is not None:
            columns.of_table(schema)
    except ValueError as error:
        raise RequestError(f"{replace(root, path=shard.path)}: {error}") from error


def table_schema(root: Location, shard: Shard) -> pa.Schema | None:
    """The columns of a table; None if it is damaged."""
    try:
        with pq.ParquetFile(root.fs.open(shard.path, "rb")) as file:
            return file.schema_arrow
    except (pa.ArrowException, OSError):
        return None


def kept_columns(corpus: Corpus) -> Kept:
    """The columns that rows get from a corpus. Their types are those of the first table that can be read.

    Raises:
        RequestError: two of them get the same name.
    """
    schema = None
    if corpus.format == "parquet" and corpus.columns.keep:
        schemas = (table_schema(corpus.root, shard) for shard in corpus.shards)
        schema = next((schema for schema in schemas if schema is not None), None)
    try:
        return Kept.of(corpus.columns, {} if schema is None else {field.name: field.type for field in schema})
    except ValueError as error:
        raise RequestError(f"--keep-columns: {error}") from error


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
    reading = Reading(corpus.columns, corpus.limits.max_file_bytes)
    uri, name = names_of(corpus.root, shard)
    records = reachable(readers[corpus.format](corpus.root, shard, reading), corpus.root, shard)
    if shard.only is not None:
        records = chosen(records, uri, name, shard.only)
    return counted(itertools.islice(records, shard.first_images), uri, name, reading.passed_over)


def reachable(records: Iterator[Record], root: Location, shard: Shard) -> Iterator[Record]:
    """The same records, followed by a failure if the shard is not there or may not be read."""
    uri, name = names_of(root, shard)
    try:
        yield from records
    except FileNotFoundError:
        reason = (
            f"s3fs cannot read names with {VERSION_MARK}" if VERSION_MARK in name else "the file is no longer there"
        )
        yield Record(name, uri, name, None, Status.MISSING, f"{uri}: {reason}")
    except PermissionError:
        yield Record(name, uri, name, None, Status.FORBIDDEN, f"{uri}: access is denied")


def chosen(records: Iterator[Record], uri: str, name: str, only: Collection[str]) -> Iterator[Record]:
    """The records with these ids, and those of the shard as a whole. Ids that the shard lacks become failures."""
    missing = set(only)
    for record in records:
        if record.image_id in missing or record.status in OF_SHARDS:
            missing.discard(record.image_id)
            yield record
    for image_id in sorted(missing):
        yield Record(image_id, uri, name, None, Status.MISSING, f"{uri}: {image_id} is not in it")


def only_images(corpus: Corpus, image_ids: Iterable[str]) -> tuple[Corpus, list[str]]:
    """The part of a corpus with these images, and the ids of images of other files."""
    unknown: list[str] = []
    ids: dict[str, set[str]] = {utf8(shard.name): set() for shard in corpus.shards}
    for image_id in image_ids:
        parts = image_id.split("/")
        names = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
        shard_name = next((name for name in names if name in ids), None)
        if shard_name is None:
            unknown.append(image_id)
        else:
            ids[shard_name].add(image_id)
    named = ((shard, frozenset(ids[utf8(shard.name)])) for shard in corpus.shards)
    return replace(corpus, shards=tuple(replace(shard, only=only) for shard, only in named if only)), unknown


def counted(records: Iterator[Record], uri: str, name: str, passed_over: Counter[str]) -> Iterator[Record]:
    """The same records, the last one with their number and what was passed over. None at all becomes a failure."""
    held, count = None, 0
    for record in records:
        if held is not None:
            yield held
        held, count = record, count + 1
    if held is None:
        sentence = f"{uri}: it has no images{in_brackets(passed_over)}"
        held, count = Record(name, uri, name, None, Status.NO_IMAGES, sentence), 1
    members = [{"ending": ending, "files": files} for ending, files in passed_over.most_common()]
    yield held._replace(shard_images=count, passed_over=members)
