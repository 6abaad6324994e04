"""What a run that was cut off has done already, read from its rows, so that nothing is read or labelled again."""

import io
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.output import Output, file_name
from cluster.readers import utf8
from cluster.sources import Corpus
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


def find_done(output: Output) -> Done:
    """Count the rows of every shard; ids are read only of shards that are not complete.

    The columns needed repeat a few values over and over, so they are small: a file costs its footer and a few hundred
    bytes. Every rows file must count, as after `Output.recover`.
    """
    rows: Counter[str] = Counter()
    expected: dict[str, int] = {}
    shards_of_file: dict[str, list[str]] = {}
    with ThreadPoolExecutor(READERS) as readers:
        paths = output.rows_files()
        for path, counts in zip(paths, readers.map(lambda path: count_shards(output, path), paths), strict=True):
            shards_of_file[path] = [shard for shard, _, _ in counts]
            for shard, count, last in counts:
                rows[shard] += count
                if last is not None:
                    expected[shard] = last
        complete = frozenset(shard for shard, count in rows.items() if count == expected.get(shard))
        open_files = [path for path, shards in shards_of_file.items() if not complete.issuperset(shards)]
        ids = defaultdict(set)
        for table in readers.map(lambda path: read_columns(output, path, ["image_id", "shard"]), open_files):
            for image_id, shard in zip(table["image_id"].to_pylist(), table["shard"].to_pylist(), strict=True):
                if shard not in complete:
                    ids[shard].add(image_id)
    return Done(rows.total(), complete, {shard: frozenset(images) for shard, images in ids.items()})


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
        with output.location.fs.open(path, "rb") as file:
            table = pq.ParquetFile(file).read()
        kept = table.filter(pc.invert(passing))
        buffer = io.BytesIO()
        pq.write_table(kept, buffer, compression="zstd")
        output.write(file_name(path), buffer.getvalue())
        forgotten += len(table) - len(kept)
    return forgotten


def count_shards(output: Output, path: str) -> list[tuple[str, int, int | None]]:
    """Of every shard in a rows file: its name, how many rows it has there, and its ``shard_images`` if it is there."""
    table = read_columns(output, path, ["shard", "shard_images"])
    grouped = table.group_by("shard").aggregate([([], "count_all"), ("shard_images", "max")])
    columns = (grouped[name].to_pylist() for name in ("shard", "count_all", "shard_images_max"))
    return list(zip(*columns, strict=True))


def read_columns(output: Output, path: str, columns: list[str]) -> pa.Table:
    with output.location.fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read(columns=columns)
