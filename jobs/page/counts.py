"""Counting labels: failures, classes and scores, in one pass over the rows that never reads a mask."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.output.rows import Labels
from schemas.errors import RequestError
from schemas.rows import Status

COLUMNS = ("status", "error", "class_scores", "annotations.list.element.category_id")
BIN_WIDTH = 0.05
BINS = 41
"""Bins of a histogram of scores; the last one holds 2 and all above it."""
SCORES_AT_A_TIME = 2**21
MOST_ROWS_AT_A_TIME = 8192


class Portion(NamedTuple):
    """Some rows with status ok, as arrays.

    Attributes:
        rows: int64 [pictures], their numbers in the output, counted over all files.
        scores: float32 [pictures, classes].
        pictures: int64 [found], one entry for each class found in a picture: position of the picture in ``rows``.
        classes: int64 [found], the class, from 0.
    """

    rows: np.ndarray
    scores: np.ndarray
    pictures: np.ndarray
    classes: np.ndarray

    @property
    def found_scores(self) -> np.ndarray:
        """float32 [found]: the scores of the classes that were found."""
        scores: np.ndarray = self.scores[self.pictures, self.classes]
        return scores


@dataclass
class Tally:
    """What was counted.

    Attributes:
        class_count: classes of the vocabulary.
        by_status: images.
        example_errors: for every kind of failure the first sentence about it.
        without_class: images in which only background was found.
        histograms: int64 [2, classes, BINS], images by their score of a class: first those in which the class was not
            found, then those in which it was.
        file_starts: number of each file's first row, and behind them the number of all rows.
    """

    class_count: int
    by_status: Counter[str] = field(default_factory=Counter)
    example_errors: dict[str, str] = field(default_factory=dict)
    without_class: int = 0
    histograms: np.ndarray = field(init=False)
    file_starts: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        self.histograms = np.zeros((2, self.class_count, BINS), np.int64)

    @property
    def images(self) -> int:
        return self.by_status.total()

    @property
    def ok(self) -> int:
        return self.by_status[Status.OK]

    @property
    def images_by_class(self) -> np.ndarray:
        """int64 [classes]: in how many images each was found."""
        images: np.ndarray = self.histograms[1].sum(axis=1)
        return images

    def count(self, labels: Labels) -> Iterator[Portion]:
        """Count all rows, and hand out those with status ok on the way.

        Raises:
            RequestError: the rows are none of a labelling job's, or do not fit the manifest.
            OSError: the storage failed.
        """
        batch_rows = max(1, min(MOST_ROWS_AT_A_TIME, SCORES_AT_A_TIME // max(self.class_count, 1)))
        try:
            for file in labels.files():
                yield from self.count_file(file, batch_rows)
        except (pa.ArrowException, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(f"{labels.location.url} holds rows that do not fit the manifest: {reason}") from error

    def count_file(self, file: pq.ParquetFile, batch_rows: int) -> Iterator[Portion]:
        first_row = self.file_starts[-1]
        with file:
            self.file_starts.append(first_row + file.metadata.num_rows)
            for batch in file.iter_batches(batch_rows, columns=list(COLUMNS)):
                self.count_failures(batch)
                portion = read_portion(batch, first_row, self.class_count)
                self.count_scores(portion)
                first_row += len(batch)
                yield portion

    def count_failures(self, batch: pa.RecordBatch) -> None:
        for entry in pc.value_counts(batch["status"]).to_pylist():
            self.by_status[entry["values"]] += entry["counts"]
        failed = batch.select(["status", "error"]).filter(pc.not_equal(batch["status"], Status.OK.value))
        for status in pc.unique(failed["status"]).to_pylist():
            if status not in self.example_errors:
                of_kind = failed.filter(pc.equal(failed["status"], status))
                self.example_errors[status] = of_kind["error"][0].as_py() or ""

    def count_scores(self, portion: Portion) -> None:
        found = np.zeros(portion.scores.shape, np.int64)
        found[portion.pictures, portion.classes] = 1
        self.without_class += int((~found.any(axis=1)).sum())
        bins = np.clip(np.nan_to_num(portion.scores) / BIN_WIDTH, 0, BINS - 1).astype(np.int64)
        cells = (found * self.class_count + np.arange(self.class_count)) * BINS + bins
        self.histograms += np.bincount(cells.ravel(), minlength=self.histograms.size).reshape(self.histograms.shape)


def read_portion(batch: pa.RecordBatch, first_row: int, class_count: int) -> Portion:
    """The rows with status ok of a batch with `COLUMNS`.

    Raises:
        ValueError, KeyError: a column is missing, or there are not ``class_count`` scores.
    """
    is_ok = pc.equal(batch["status"], Status.OK.value)
    ok = batch.filter(is_ok)
    scores = ok["class_scores"].flatten().to_numpy(zero_copy_only=False).reshape(len(ok), class_count)
    categories = pc.struct_field(pc.list_flatten(ok["annotations"]), "category_id").to_numpy(zero_copy_only=False)
    classes = categories.astype(np.int64) - 1
    if len(classes) and not 0 <= classes.min() <= classes.max() < class_count:
        raise ValueError(f"a category is not between 1 and {class_count}")
    rows = first_row + np.flatnonzero(is_ok.to_numpy(zero_copy_only=False))
    return Portion(rows, scores, pc.list_parent_indices(ok["annotations"]).to_numpy(), classes)
