"""Choosing a few of many labelled pictures to look at, and reading their rows."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.output.rows import Labels
from jobs.page.counts import Portion

BEST_PER_CLASS = 8
SAMPLE_PER_CLASS = 15
ROWS_AT_A_TIME = 64
ROW_COLUMNS = ("image_id", "uri", "shard", "width", "height", "class_scores", "annotations")
ENTRY = np.dtype([("group", np.int64), ("key", np.float64), ("score", np.float32), ("row", np.int64)])


class Ranking:
    """Of every group the entries with the largest keys; with random keys, a random sample of the group."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries = np.empty(0, ENTRY)

    def add(self, groups: np.ndarray, keys: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
        new = np.empty(len(rows), ENTRY)
        new["group"], new["key"], new["score"], new["row"] = groups, keys, scores, rows
        merged = np.concatenate([self.entries, new])
        merged = merged[np.lexsort((merged["row"], -merged["key"], merged["group"]))]
        rank = np.arange(len(merged)) - np.searchsorted(merged["group"], merged["group"])
        self.entries = merged[rank < self.size]

    def of(self, group: int) -> np.ndarray:
        """The group's entries, largest key first."""
        first, end = np.searchsorted(self.entries["group"], [group, group + 1])
        entries: np.ndarray = self.entries[first:end]
        return entries


class Candidates:
    """Rows that may get into the gallery. Memory grows with classes and pictures wanted, not with rows."""

    def __init__(self, pictures: int, seed: int) -> None:
        self.pictures = pictures
        self.rng = np.random.default_rng(seed)
        self.best, self.sample, self.any = Ranking(BEST_PER_CLASS), Ranking(SAMPLE_PER_CLASS), Ranking(pictures)

    def add(self, portion: Portion) -> None:
        scores, rows = portion.found_scores, portion.rows[portion.pictures]
        self.best.add(portion.classes, scores, scores, rows)
        self.sample.add(portion.classes, self.rng.random(len(rows)), scores, rows)
        count = len(portion.rows)
        self.any.add(np.zeros(count), self.rng.random(count), np.zeros(count), portion.rows)

    def choose(self, images_by_class: np.ndarray) -> list[int]:
        """Row numbers of the gallery's pictures.

        Turn by turn, every class gets one of its best pictures or one of middling score; half of the classes begin with
        a middling one, so that few pictures for many classes are no flattering choice. Rare classes come first: what is
        frequent is in their pictures, too. Room that is left goes to any pictures.

        Args:
            images_by_class: int64 [classes].
        """
        present = np.flatnonzero(images_by_class)
        rarest_first = present[np.argsort(images_by_class[present], kind="stable")].tolist()
        of_classes = (self.of_class(index, place % 2 == 1) for place, index in enumerate(rarest_first))
        turns = itertools.zip_longest(*of_classes)
        rows = itertools.chain(itertools.chain.from_iterable(turns), self.any.of(0)["row"].tolist())
        return list(itertools.islice(dict.fromkeys(row for row in rows if row is not None), self.pictures))

    def of_class(self, index: int, middling_first: bool) -> list[int]:
        """A class's candidates, best and middling ones in turn: the best, the most middling, the second best, ..."""
        sample = self.sample.of(index)
        distance = np.abs(sample["score"] - np.median(sample["score"]))
        middling = sample["row"][np.argsort(distance, kind="stable")].tolist()
        best = self.best.of(index)["row"].tolist()
        pairs = itertools.zip_longest(middling, best) if middling_first else itertools.zip_longest(best, middling)
        return [row for pair in pairs for row in pair if row is not None]


def read_rows(labels: Labels, file_starts: Sequence[int], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The rows with these numbers, masks included, each image once.

    Args:
        labels: where they are.
        file_starts: number of each file's first row, and behind them the number of all rows.
        numbers: in the order wanted.

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


def rows_at(
    file: pq.ParquetFile, numbers: Sequence[int], columns: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Single rows of a Parquet file with their numbers; only the row groups that hold one are read."""
    end = 0
    for group in range(file.num_row_groups):
        start, end = end, end + file.metadata.row_group(group).num_rows
        if not any(start <= number < end for number in numbers):
            continue
        for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=list(columns)):
            for number in numbers:
                if start <= number < start + len(batch):
                    yield number, batch.slice(number - start, 1)
            start += len(batch)
