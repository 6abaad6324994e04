"""The corpus as a Ray Data source: read tasks yield images that are prepared for the models."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from ray.data import Datasource
from ray.data.block import Block, BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from cluster import prometheus
from cluster.corpus.prepare import Preparer
from cluster.corpus.readers import Shard
from cluster.corpus.sources import Corpus, read_shard

BLOCK_ROWS = 8
"""Images in a block: about 10 MB. Actors take about as many at a time."""
IMAGE_FILES_PER_TASK = 64
MAX_TASKS = 10_000
TASKS_PER_SLOT = 2
"""Read tasks for every CPU slot that there should at least be, so that few shards still keep all of them busy."""
MAX_PARTS = 8
"""Most tasks that share a shard. Each reads the whole shard, and prepares its share of the images."""


READING: tuple[prometheus.Stage, ...] = ("read", "prepare")


class CorpusDatasource(Datasource):
    """Reads a corpus and prepares its images, in one task: compressed files stay out of the object store.

    A data source and not a list of items, because Ray Data's checkpoint wants a read operator.

    Args:
        corpus: what to read.
        prepare: makes prepared rows of images.
        report: is told what was read, see `cluster.progress.report`.
        slots: CPU slots of the cluster.
    """

    def __init__(self, corpus: Corpus, prepare: Preparer, report: Callable[..., None], slots: int) -> None:
        super().__init__()
        self.corpus, self.prepare, self.report, self.slots = corpus, prepare, report, slots

    def groups(self) -> list[tuple[Shard, ...]]:
        """The shards of each read task."""
        shards, tasks = self.corpus.shards, max(1, TASKS_PER_SLOT * self.slots)
        if self.corpus.format == "folder":
            size = max(1, min(IMAGE_FILES_PER_TASK, len(shards) // tasks), -(-len(shards) // MAX_TASKS))
            return [shards[start : start + size] for start in range(0, len(shards), size)]
        parts = max(1, min(MAX_PARTS, tasks // max(len(shards), 1)))
        size = -(-len(shards) // MAX_TASKS)
        return [
            tuple(replace(shard, part=part, parts=parts) for shard in shards[start : start + size])
            for start in range(0, len(shards), max(size, 1))
            for part in range(parts)
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(
                partial(read_blocks, replace(self.corpus, shards=group), self.prepare, self.report),
                unknown,
                self.prepare.schema,
                per_task_row_limit,
            )
            for group in self.groups()
        ]


def read_blocks(corpus: Corpus, prepare: Preparer, report: Callable[..., None]) -> Iterator[Block]:
    """The prepared images of a task's part of the corpus, without those that are done, in blocks.

    Args:
        corpus: what to read.
        prepare: see `CorpusDatasource`.
        report: is told what was read, shard by shard, see `cluster.progress.report`.
    """
    rows: list[dict[str, Any]] = []
    for shard in corpus.shards:
        shard_bytes, images, before = 0, 0, prometheus.SPENT.copy()
        for number, record in enumerate(prometheus.timed_items("read", read_shard(corpus, shard))):
            if number % shard.parts != shard.part:
                continue
            shard_bytes += len(record.data or b"")
            if record.image_id in shard.done:
                continue
            with prometheus.timed_stage("prepare", 1):
                rows.append(prepare(record) | {"shard_version": shard.version})
            images += 1
            if len(rows) == BLOCK_ROWS:
                yield prepare.table(rows)
                rows = []
        spent = {f"{stage}_ms": round(1000 * (prometheus.SPENT[stage] - before[stage])) for stage in READING}
        report(bytes_read=shard_bytes, images_read=images, parts_read=1, **spent)
        prometheus.add(prometheus.READ_BYTES, shard_bytes)
    if rows:
        yield prepare.table(rows)
