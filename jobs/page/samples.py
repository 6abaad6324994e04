"""Choose a few of many labelled images to look at, and read their rows."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.output.rows import Labels
from jobs.common.counts import ScoredRows
from schemas.rows import Status

BEST_PER_CLASS = 8
RANDOM_PER_CLASS = 15
CHUNK_SIZE = 64
ROW_COLUMNS = (
    "image_id", "uri", "shard", "width", "height", "class_scores", "class_probabilities", "lost_to", "annotations",
)  # fmt: skip
ENTRY = np.dtype([("group", np.int64), ("key", np.float64), ("score", np.float32), ("row", np.int64)])


def largest(size: int, entries: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """The entries with the largest keys of each group, largest first, among some and the columns of new ones.

    With random keys they are a random sample of the group.
    """
    merged = np.concatenate([entries, np.rec.fromarrays(columns, ENTRY)])
    merged = merged[np.lexsort((merged["row"], -merged["key"], merged["group"]))]
    rank = np.arange(len(merged)) - np.searchsorted(merged["group"], merged["group"])
    return merged[rank < size]


class Samples:
    """Rows that the page may show. Memory grows with the classes and the images wanted, not with the rows."""

    def __init__(self, images: int, seed: int) -> None:
        self.images = images
        self.rng = np.random.default_rng(seed)
        self.best = self.random = self.any = np.empty(0, ENTRY)

    def add(self, chunk: ScoredRows) -> None:
        scores, rows = chunk.scores[chunk.images, chunk.classes], chunk.rows[chunk.images]
        none = np.zeros(len(chunk.rows))
        self.best = largest(BEST_PER_CLASS, self.best, chunk.classes, scores, scores, rows)
        self.random = largest(RANDOM_PER_CLASS, self.random, chunk.classes, self.rng.random(len(rows)), scores, rows)
        self.any = largest(self.images, self.any, none, self.rng.random(len(none)), none, chunk.rows)

    def choose(self, images_by_class: np.ndarray) -> list[int]:
        """Row numbers of the images to show.

        In each round, every class gets one of its best images or one with a score near its median. Half of the classes
        start with a median one; otherwise a page with few images and many classes would show best cases only. Rare
        classes come first, because their images also show frequent ones. Random images fill the remaining places.

        Args:
            images_by_class: int64 [classes].
        """
        present = np.flatnonzero(images_by_class)
        rarest_first = present[np.argsort(images_by_class[present], kind="stable")].tolist()
        of_classes = (self.of_class(index, place % 2 == 1) for place, index in enumerate(rarest_first))
        rows = dict.fromkeys(itertools.chain(alternating(*of_classes), self.any["row"].tolist()))
        return list(itertools.islice(rows, self.images))

    def of_class(self, index: int, median_first: bool) -> list[int]:
        """A class's candidates, alternately from the best and from those closest to the median score."""
        best, entries = (entries[entries["group"] == index] for entries in (self.best, self.random))
        distance = np.abs(entries["score"] - np.median(entries["score"]))
        lists = [best["row"].tolist(), entries["row"][np.argsort(distance, kind="stable")].tolist()]
        return alternating(*(reversed(lists) if median_first else lists))


def alternating(*lists: Sequence[int]) -> list[int]:
    """The first of each list, then the second of each, and so on."""
    return [row for rows in itertools.zip_longest(*lists) for row in rows if row is not None]


def read_rows(labels: Labels, file_starts: Sequence[int], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The rows with these numbers in their order, masks included, without repeated images.

    ``file_starts`` are those of `jobs.common.counts.Counts`.

    Raises:
        OSError: the storage failed.
    """
    found: dict[int, dict[str, Any]] = {}
    for path, start, end in zip(labels.paths, file_starts, file_starts[1:], strict=False):
        wanted = [number - start for number in numbers if start <= number < end]
        if wanted:
            with labels.open(path) as file:
                for number, row in rows_at(file, wanted, ROW_COLUMNS):
                    found[start + number] = row.to_pylist()[0]
    return list({found[number]["image_id"]: found[number] for number in numbers}.values())


def rows_by_id(labels: Labels, image_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows with status ok of these images, masks included; of repeated ones the first.

    Raises:
        OSError: the storage failed.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = pa.array(image_ids, pa.string())
    for path in labels.paths:
        with labels.open(path) as file:
            rows = file.read(columns=["image_id", "status"])
            chosen = pc.and_(pc.is_in(rows["image_id"], wanted), pc.equal(rows["status"], Status.OK.value))
            for _, row in rows_at(file, np.flatnonzero(chosen.to_numpy()).tolist(), ROW_COLUMNS):
                found.setdefault(row["image_id"][0].as_py(), row.to_pylist()[0])
    return found


def rows_at(
    file: pq.ParquetFile, numbers: Sequence[int], columns: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Single rows of a Parquet file with their numbers. Only the row groups that contain one are read."""
    end = 0
    for group in range(file.num_row_groups):
        start, end = end, end + file.metadata.row_group(group).num_rows
        if not any(start <= number < end for number in numbers):
            continue
        for batch in file.iter_batches(CHUNK_SIZE, row_groups=[group], columns=list(columns)):
            for number in numbers:
                if start <= number < start + len(batch):
                    yield number, batch.slice(number - start, 1)
            start += len(batch)
