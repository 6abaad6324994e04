"""The corpus: which files hold images.

Every image becomes one record with an ``image_id`` that is unique over the corpus and the same on every run.
"""

import itertools
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import bracex
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.corpus.decode import IMAGE_ENDINGS
from cluster.corpus.limits import DEFAULT_LIMITS, Limits
from cluster.corpus.readers import (
    ZSTD_ENDING,
    Record,
    Shard,
    ending_of,
    image_column,
    is_hidden,
    names_of,
    read_image,
    read_table,
    read_tar,
)
from cluster.storage import STORAGE_ERRORS, Location, open_location, storage_problem
from schemas.errors import RequestError
from schemas.rows import Status

CorpusFormat = Literal["tar", "parquet", "folder"]

SUFFIXES: dict[CorpusFormat, tuple[str, ...]] = {
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ZSTD_ENDING),
    "parquet": (".parquet",),
    "folder": IMAGE_ENDINGS,
}


Found = dict[str, dict[str, Any]]
"""What the storage says of files, by path."""
PATTERN = "*?["
CHECKPOINT = "_checkpoint"
"""The folder in an output with names of rows files; its tables hold no images."""
MAX_PATHS = 1_000_000
"""Most paths that a pattern with braces may stand for."""


@dataclass(frozen=True)
class Input:
    """What names a corpus: an address, or a list of addresses in a text file.

    Attributes:
        address: as manifests keep it, ``@`` and a URL for a list.
        places: the addresses, on one file system.
    """

    address: str
    places: tuple[Location, ...]

    def __str__(self) -> str:
        return f"{self.places[0].flag} {self.address}"


@dataclass(frozen=True)
class Corpus:
    """The files of an input, sorted by name.

    Attributes:
        root: the input, or the folder above a list's addresses.
        format: of its files.
        shards: its files.
        limits: on single images.
        passed_over: files of other kinds, counted by the ending of their names.
    """

    root: Location
    format: CorpusFormat
    shards: tuple[Shard, ...]
    limits: Limits = DEFAULT_LIMITS
    passed_over: Mapping[str, int] = field(default_factory=dict)


def open_input(address: str, flag: str = "--input") -> Input:
    """The input of an address: a path or URL, with patterns if wanted, or ``@FILE`` with one of these on each line.

    Raises:
        RequestError: there is nothing, the list cannot be read, or its addresses are on several file systems.
    """
    if not address.startswith("@"):
        place = open_location(address, flag)
        return Input(place.url, (place,))
    file = open_location(address[1:], flag)
    try:
        content = file.fs.cat_file(file.path).decode("utf-8")
    except STORAGE_ERRORS as error:
        raise file.refusal(error, "read") from error
    except UnicodeDecodeError:
        raise RequestError(f"{file} is no UTF-8 text: write one address on each line") from None
    places = tuple(open_location(line.strip(), flag) for line in content.splitlines() if line.strip())
    if not places:
        raise RequestError(f"{file} lists nothing: write one address on each line")
    if any(place.fs != places[0].fs for place in places):
        raise RequestError(f"{file} lists addresses on several file systems: give each a job of its own")
    return Input(f"@{file.url}", places)


def list_corpus(
    source: Input,
    wanted: Literal["auto"] | CorpusFormat,
    output: Location | None,
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
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

    Raises:
        RequestError: nothing there, nothing readable there, or several formats side by side.
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
        shards[format_of(path)].append(Shard(relative, path, version=version_of(info)))
    corpus_format = choose_format(source, wanted, shards)
    members = tuple(sorted(shards.pop(corpus_format), key=lambda shard: shard.name))
    passed_over = Counter(ending_of(shard.name) for others in shards.values() for shard in others)
    corpus = Corpus(root, corpus_format, members, limits, dict(passed_over))
    if corpus_format == "parquet":
        check_table(root, corpus.shards[0])
    return corpus if limit is None else limited(corpus, limit)


def passed_over_sentence(passed_over: Mapping[str, int]) -> str:
    """Files or members that are no images, in words."""
    total = sum(passed_over.values())
    counts = ", ".join(
        f"{count:,} {ending}" for ending, count in sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    )
    return f"passed over: {total:,} file{'s' * (total != 1)}: {counts}"


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


def list_files(source: Input) -> tuple[str, Found]:
    """The folder that names are relative to, and all files of an input by path.

    Raises:
        RequestError: a part of the input cannot be listed, does not exist or matches nothing.
    """
    bases: list[str] = []
    found: Found = {}
    for place in chain.from_iterable(map(places_of, source.places)):
        try:
            base, files = list_path(place)
        except (*STORAGE_ERRORS, ValueError) as error:
            raise RequestError(f"{place}: {storage_problem(error)}") from error
        bases.append(base)
        found |= files
    return posixpath.commonpath(bases) if len(bases) > 1 else bases[0], found


def places_of(place: Location) -> list[Location]:
    """The places that a pattern with braces stands for; the place itself if it has none or exists as it is written.

    Raises:
        RequestError: it stands for too many.
    """
    if "{" not in place.path or place.fs.exists(place.path):
        return [place]
    try:
        return [replace(place, path=path) for path in bracex.iexpand(place.path, keep_escapes=True, limit=MAX_PATHS)]
    except bracex.ExpansionLimitException:
        raise RequestError(f"{place} stands for more than {MAX_PATHS:,} paths: use * or @LIST.txt") from None


def list_path(place: Location) -> tuple[str, Found]:
    """The folder that names are relative to, and all files of one path, which may be a pattern.

    Raises:
        OSError: it cannot be listed or does not exist.
    """
    fs, path = place.fs, place.path
    if not fs.exists(path) and any(character in path for character in PATTERN):
        fixed = itertools.takewhile(lambda part: not any(character in part for character in PATTERN), path.split("/"))
        matches = fs.glob(path, detail=True)
        for folder in [name for name, info in matches.items() if info["type"] == "directory"]:
            matches |= fs.find(folder, detail=True)
        return "/".join(fixed), regular(matches)
    info = fs.info(path)
    if info["type"] == "directory":
        return path, regular(fs.find(path, detail=True))
    return posixpath.dirname(path), {path: info}


def regular(found: Found) -> Found:
    """Only the files; folders, pipes and sockets are left out."""
    return {str(path): info for path, info in found.items() if info["type"] not in ("directory", "other")}


def version_of(info: Mapping[str, Any]) -> str:
    """The size of a file, and its ETag or time of modification, as file systems name them."""
    marks = (str(info[name]) for name in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(name))
    return f"{info.get('size')} {next(marks, '')}"


def choose_format(
    source: Input, wanted: Literal["auto"] | CorpusFormat, shards: Mapping[CorpusFormat | None, list[Shard]]
) -> CorpusFormat:
    """The format asked for, or the only one found."""
    passed_over = Counter(ending_of(shard.name) for shard in shards.get(None, ()))
    others = f" ({passed_over_sentence(passed_over)})" if passed_over else ""
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
    passed_over: Counter[str] = Counter()
    records = readers[corpus.format](corpus.root, shard, corpus.limits.max_file_bytes, passed_over)
    records = itertools.islice(reachable(records, corpus.root, shard), shard.first_images)
    return counted(records, *names_of(corpus.root, shard), passed_over)


def reachable(records: Iterator[Record], root: Location, shard: Shard) -> Iterator[Record]:
    """The same records, followed by a failure if the shard is not there or may not be read."""
    uri, name = names_of(root, shard)
    try:
        yield from records
    except FileNotFoundError:
        yield Record(name, uri, name, None, Status.MISSING, f"{uri}: the file is no longer there")
    except PermissionError:
        yield Record(name, uri, name, None, Status.FORBIDDEN, f"{uri}: access is denied")


def counted(records: Iterator[Record], uri: str, name: str, passed_over: Counter[str]) -> Iterator[Record]:
    """The same records, the last one with their number and what was passed over. None at all becomes a failure."""
    held, count = None, 0
    for record in records:
        if held is not None:
            yield held
        held, count = record, count + 1
    if held is None:
        others = f" ({passed_over_sentence(passed_over)})" if passed_over else ""
        held, count = Record(name, uri, name, None, Status.NO_IMAGES, f"{uri}: it has no images{others}"), 1
    members = [{"ending": ending, "files": files} for ending, files in passed_over.most_common()]
    yield held._replace(shard_images=count, passed_over=members)
