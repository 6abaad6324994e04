"""What a run that was cut off has done already, read from its rows, so that nothing is read or labelled again."""

import io
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.corpus.readers import utf8
from cluster.corpus.sources import Corpus
from cluster.output.folder import Output, file_name
from schemas.rows import MAY_PASS

READERS = 16


@dataclass(frozen=True)
class Done:
    """Rows that are there.

    Attributes:
        images: how many.
        shards: names of the shards whose every image has its row.
        ids: of the other shards that were begun, the images that have their row.
    """

    images: int
    shards: frozenset[str]
    ids: dict[str, frozenset[str]]

    def remaining(self, corpus: Corpus) -> Corpus:
        """What is left of a corpus: complete shards are gone, begun ones know what to pass over."""
        named = ((utf8(shard.name), shard) for shard in corpus.shards)
        shards = (
            replace(shard, done=self.ids.get(name, frozenset())) for name, shard in named if name not in self.shards
        )
        return replace(corpus, shards=tuple(shards))


def take_stock(output: Output) -> Done:
    """Count the rows of every shard; ids are read only of shards that are not complete or that several runs wrote to.

    Within a run an image has one row, but a run that seemed dead may have written while the next one had begun: rows
    beyond an image's first are deleted.

    The columns needed repeat a few values over and over, so they are small: a file costs its footer and a few hundred
    bytes. Every rows file must count, as after `Output.recover`.
    """
    rows: Counter[str] = Counter()
    expected: dict[str, int] = {}
    runs: defaultdict[str, set[str]] = defaultdict(set)
    shards_of_file: dict[str, list[str]] = {}
    paths = output.rows_files()
    with ThreadPoolExecutor(READERS) as readers:
        for path, counts in zip(paths, readers.map(lambda path: count_shards(output, path), paths), strict=True):
            shards_of_file[path] = [shard for shard, _, _ in counts]
            for shard, count, last in counts:
                rows[shard] += count
                runs[shard].add(run_of(path))
                if last is not None:
                    expected[shard] = last
    sure = {shard for shard, count in rows.items() if count == expected.get(shard) and len(runs[shard]) == 1}
    ids = distinct_ids(output, [path for path in paths if not sure.issuperset(shards_of_file[path])], sure)
    complete = frozenset(sure | {shard for shard, images in ids.items() if len(images) == expected.get(shard)})
    images = sum(rows[shard] for shard in sure) + sum(map(len, ids.values()))
    return Done(images, complete, {shard: frozenset(ids[shard]) for shard in ids.keys() - complete})


def distinct_ids(output: Output, paths: list[str], sure: set[str]) -> dict[str, set[str]]:
    """The image ids of every shard in these files but those that are sure; rows beyond an image's first are deleted."""
    ids: defaultdict[str, set[str]] = defaultdict(set)
    with ThreadPoolExecutor(READERS) as readers:
        tables = readers.map(lambda path: read_columns(output, path, ["image_id", "shard"]), paths)
        for path, table in zip(paths, tables, strict=True):
            first = []
            for image_id, shard in zip(table["image_id"].to_pylist(), table["shard"].to_pylist(), strict=True):
                first.append(image_id not in ids[shard] if shard not in sure else True)
                if shard not in sure:
                    ids[shard].add(image_id)
            if not all(first):
                keep_rows(output, path, pa.array(first))
    return dict(ids)


def forget_passing_failures(output: Output) -> int:
    """Delete the rows of failures that another try may not meet again, so that a run labels these images once more.

    Rows files are replaced one by one, each whole. A crash in between loses nothing: an image without a row is labelled
    by the next run.

    Returns:
        How many rows were deleted.
    """
    forgotten = 0
    for path in output.rows_files():
        statuses = read_columns(output, path, ["status"])["status"]
        passing = pc.is_in(statuses, pa.array(sorted(MAY_PASS)))
        if not pc.any(passing).as_py():
            continue
        keep_rows(output, path, pc.invert(passing))
        forgotten += pc.sum(passing).as_py()
    return forgotten


def keep_rows(output: Output, path: str, mask: pa.Array) -> None:
    """Replace a rows file, whole, by one with those of its rows where the mask is true."""
    with output.location.fs.open(path, "rb") as file:
        table = pq.ParquetFile(file).read()
    buffer = io.BytesIO()
    pq.write_table(table.filter(mask), buffer, compression="zstd")
    output.write(file_name(path), buffer.getvalue())


def run_of(path: str) -> str:
    """What the names of a run's rows files have in common: ``RUN_TASK-0.parquet``."""
    return file_name(path).rpartition("_")[0]


def count_shards(output: Output, path: str) -> list[tuple[str, int, int | None]]:
    """Of every shard in a rows file: its name, how many rows it has there, and its ``shard_images`` if it is there."""
    table = read_columns(output, path, ["shard", "shard_images"])
    grouped = table.group_by("shard").aggregate([([], "count_all"), ("shard_images", "max")])
    columns = (grouped[name].to_pylist() for name in ("shard", "count_all", "shard_images_max"))
    return list(zip(*columns, strict=True))


def read_columns(output: Output, path: str, columns: list[str]) -> pa.Table:
    with output.location.fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read(columns=columns)
