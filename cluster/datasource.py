"""The corpus as a Ray Data source: one read task per shard."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pyarrow as pa
from ray.data import Datasource
from ray.data.block import Block, BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from cluster import prometheus
from cluster.corpus.readers import Record, Shard
from cluster.corpus.sources import Corpus, read_shard

RECORD_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("data", pa.large_binary()),
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        pa.field("shard_images", pa.int32()),
    ]
)
BLOCK_BYTES = 8 * 1024**2
"""Compressed bytes in a block: about a hundred photographs, so that a single shard keeps several actors busy."""
BLOCK_ROWS = 128
IMAGE_FILES_PER_TASK = 64
MAX_TASKS = 10_000


class CorpusDatasource(Datasource):
    """Reads the records of a corpus.

    A data source and not a list of items, because Ray Data's checkpoint wants a read operator.
    """

    def __init__(self, corpus: Corpus, report: Callable[[int], None]) -> None:
        super().__init__()
        self.corpus, self.report = corpus, report

    def groups(self) -> list[tuple[Shard, ...]]:
        """The shards of each read task."""
        shards = self.corpus.shards
        at_least = IMAGE_FILES_PER_TASK if self.corpus.format == "folder" else 1
        size = max(at_least, -(-len(shards) // MAX_TASKS))
        return [shards[start : start + size] for start in range(0, len(shards), size)]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        tasks = (replace(self.corpus, shards=group) for group in self.groups())
        return [
            ReadTask(partial(read_blocks, task, self.report), unknown, RECORD_SCHEMA, per_task_row_limit)
            for task in tasks
        ]


def read_blocks(corpus: Corpus, report: Callable[[int], None]) -> Iterator[Block]:
    """The records of a corpus, or of a task's part of it, in blocks of bounded size; without those that are done.

    Args:
        corpus: what to read.
        report: is told, shard by shard, how many bytes of images were read.
    """
    gathered: list[Record] = []
    gathered_bytes = 0
    for shard in corpus.shards:
        shard_bytes = 0
        for record in prometheus.timed_items("read", read_shard(corpus, shard)):
            shard_bytes += len(record.data or b"")
            if record.image_id in shard.done:
                continue
            gathered.append(record)
            gathered_bytes += len(record.data or b"")
            if gathered_bytes >= BLOCK_BYTES or len(gathered) >= BLOCK_ROWS:
                yield block(gathered)
                gathered, gathered_bytes = [], 0
        report(shard_bytes)
        prometheus.add(prometheus.READ_BYTES, shard_bytes)
    if gathered:
        yield block(gathered)


def block(records: list[Record]) -> pa.Table:
    columns = dict(zip(Record._fields, zip(*records, strict=True), strict=True))
    return pa.table({name: pa.array(values, RECORD_SCHEMA.field(name).type) for name, values in columns.items()})
