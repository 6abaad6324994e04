"""What earlier runs have done, read from their rows, so that no image is read or labelled twice."""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.corpus.readers import utf8
from cluster.corpus.sources import Corpus
from cluster.output.changes import read_versions
from cluster.output.files import atomic_write, file_name
from cluster.output.folder import Output
from cluster.output.rows import first_rows, map_rows_files
from schemas.rows import TRANSIENT

COUNTED_COLUMNS = ["shard", "shard_version", "shard_images"]


@dataclass(frozen=True)
class Progress:
    """The rows that an output has.

    Attributes:
        images: their number.
        shards: names of the shards whose every image has its row.
        ids: for each other shard that was begun, the images that have their row.
        files: sizes by path of the files that the rows are in.
    """

    images: int
    shards: frozenset[str]
    ids: dict[str, frozenset[str]]
    files: dict[str, int]

    def remaining(self, corpus: Corpus) -> Corpus:
        """The rest of a corpus, without complete shards. Begun shards know which images to skip."""
        named = ((utf8(shard.name), shard) for shard in corpus.shards)
        shards = (
            replace(shard, done=self.ids.get(name, frozenset())) for name, shard in named if name not in self.shards
        )
        return replace(corpus, shards=tuple(shards))


def scan_output(output: Output) -> Progress:
    """Count the rows of every shard. Ids are read only of shards that are incomplete or that several runs wrote to.

    Rows of an older version of their shard are deleted. A run writes one row per image, but a run that seemed dead may
    have written after the next one began: of an image's rows only the first stays. Files that are no Parquet files are
    deleted too.

    The columns that are read repeat a few values, so they are small: a file costs its footer and a few hundred bytes.
    """
    files, versions = output.rows_files(), read_versions(output)
    rows: Counter[str] = Counter()
    expected: dict[str, int] = {}
    runs: defaultdict[str, set[str]] = defaultdict(set)
    shards_of_file: dict[str, set[str]] = {}
    damaged: list[str] = []
    outdated: list[str] = []
    for path, counts in map_rows_files(output, COUNTED_COLUMNS, count_shards, list(files), damaged):
        shards_of_file[path] = {shard for shard, *_ in counts}
        for shard, version, count, last in counts:
            if versions.get(shard, version) != version:
                outdated.append(path)
            rows[shard] += count
            runs[shard].add(run_of(path))
            if last is not None:
                expected[shard] = last
    for path in damaged:
        output.location.fs.rm_file(path)
        del files[path]
    if outdated:
        delete_outdated(output, list(dict.fromkeys(outdated)), versions)
        return scan_output(output)
    sure = {shard for shard, count in rows.items() if count == expected.get(shard) and len(runs[shard]) == 1}
    unsure = [path for path, shards in shards_of_file.items() if not sure.issuperset(shards)]
    ids, repeated = distinct_ids(output, unsure, sure)
    if repeated:  # the files are others now
        return scan_output(output)
    complete = frozenset(sure | {shard for shard, images in ids.items() if len(images) == expected.get(shard)})
    images = sum(rows[shard] for shard in sure) + sum(map(len, ids.values()))
    begun = {shard: frozenset(ids[shard]) for shard in ids.keys() - complete}
    return Progress(images, complete, begun, files)


def delete_outdated(output: Output, paths: list[str], versions: Mapping[str, str]) -> None:
    """Delete the rows of another version of their shard than the noted one."""
    for path, table in map_rows_files(output, ["shard", "shard_version"], lambda table: table, paths):
        pairs = zip(table["shard"].to_pylist(), table["shard_version"].to_pylist(), strict=True)
        keep_rows(output, path, pa.array(versions.get(shard, version) == version for shard, version in pairs))


def distinct_ids(output: Output, paths: list[str], sure: set[str]) -> tuple[dict[str, set[str]], bool]:
    """The image ids in these files of every shard that is not sure, and whether repeated rows had to be deleted."""
    ids: defaultdict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    repeated = False
    for path, table in map_rows_files(output, ["image_id", "shard"], lambda table: table, paths):
        image_ids = table["image_id"].to_pylist()
        first = first_rows(image_ids, seen)
        if not all(first):
            keep_rows(output, path, pa.array(first))
            repeated = True
        for image_id, shard in zip(image_ids, table["shard"].to_pylist(), strict=True):
            if shard not in sure:
                ids[shard].add(image_id)
    return dict(ids), repeated


def forget_transient_failures(output: Output) -> int:
    """Delete the rows of transient failures, so that the run labels these images again.

    Rows files are replaced one by one, each atomically. A crash in between loses nothing: the next run labels an image
    without a row. Damaged files are left to `scan_output`.

    Returns:
        Number of deleted rows.

    Raises:
        OSError: the storage failed.
    """
    deleted, transient, damaged = 0, pa.array(sorted(TRANSIENT), pa.string()), list[str]()
    failures = map_rows_files(output, ["status"], lambda table: pc.is_in(table["status"], transient), damaged=damaged)
    for path, found in failures:
        if pc.any(found).as_py():
            keep_rows(output, path, pc.invert(found))
            deleted += pc.sum(found).as_py()
    return deleted


def keep_rows(output: Output, path: str, mask: pa.Array) -> None:
    """Replace a rows file atomically by one with the rows where the mask is true."""
    with output.location.fs.open(path, "rb") as file:
        table = pq.ParquetFile(file).read()
    buffer = io.BytesIO()
    pq.write_table(table.filter(mask), buffer, compression="zstd")
    with atomic_write(output.data / file_name(path)) as file:
        file.write(buffer.getvalue())


def run_of(path: str) -> str:
    """The part that the names of a run's rows files share: ``RUN_TASK-0.parquet``."""
    return file_name(path).rpartition("_")[0]


def count_shards(table: pa.Table) -> list[tuple[str, str, int, int | None]]:
    """For every version of a shard in a rows file: its name, the version, its number of rows there, and its
    ``shard_images`` if that is there."""
    grouped = table.group_by(["shard", "shard_version"]).aggregate([([], "count_all"), ("shard_images", "max")])
    columns = (grouped[name].to_pylist() for name in ("shard", "shard_version", "count_all", "shard_images_max"))
    return list(zip(*columns, strict=True))
