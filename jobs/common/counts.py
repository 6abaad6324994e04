"""Counts of labels: statuses, classes and scores, from one pass over the rows that never reads a mask."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.output.rows import Labels
from schemas.errors import RequestError
from schemas.rows import Status

COLUMNS = ("status", "error", "class_scores", "annotations.list.element.category_id")
BINS_PER_UNIT = 20
BINS = 2 * BINS_PER_UNIT + 1
"""Bins of a histogram of scores. The last one holds 2 and everything above it."""
SCORES_PER_CHUNK = 2**21
MAX_ROWS_PER_CHUNK = 8192


class ScoredRows(NamedTuple):
    """A chunk of rows with status ok, as arrays.

    Attributes:
        rows: int64 [images], row numbers counted over all files.
        scores: float32 [images, classes].
        images: int64 [found], one entry per class found in an image: the image's position in ``rows``.
        classes: int64 [found], the class, from 0.
    """

    rows: np.ndarray
    scores: np.ndarray
    images: np.ndarray
    classes: np.ndarray


@dataclass
class Counts:
    """Counts over the rows of an output.

    Attributes:
        histograms: int64 [2, classes, BINS], images by their score of a class. Index 0 holds the images in which the
            class was not found, index 1 those in which it was.
        by_status: number of images per status.
        example_errors: for every kind of failure the first error message.
        without_class: number of images in which only background was found.
        file_starts: number of each file's first row, followed by the number of all rows.
    """

    histograms: np.ndarray
    by_status: Counter[str] = field(default_factory=Counter)
    example_errors: dict[str, str] = field(default_factory=dict)
    without_class: int = 0
    file_starts: list[int] = field(default_factory=lambda: [0])

    @property
    def images(self) -> int:
        return self.by_status.total()

    @property
    def ok(self) -> int:
        return self.by_status[Status.OK]

    @property
    def images_by_class(self) -> np.ndarray:
        """int64 [classes]: number of images in which each class was found."""
        return self.histograms[1].sum(axis=1)

    def add_statuses(self, batch: pa.RecordBatch) -> None:
        for entry in pc.value_counts(batch["status"]).to_pylist():
            self.by_status[entry["values"]] += entry["counts"]
        failed = batch.select(["status", "error"]).filter(pc.not_equal(batch["status"], Status.OK.value))
        for status in pc.unique(failed["status"]).to_pylist():
            if status not in self.example_errors:
                self.example_errors[status] = failed["error"][pc.index(failed["status"], status).as_py()].as_py() or ""

    def add_scores(self, chunk: ScoredRows) -> None:
        found = np.zeros(chunk.scores.shape, np.int64)
        found[chunk.images, chunk.classes] = 1
        self.without_class += int((~found.any(axis=1)).sum())
        bins = np.clip(np.nan_to_num(chunk.scores) * BINS_PER_UNIT, 0, BINS - 1).astype(np.int64)
        class_count = chunk.scores.shape[1]
        cells = (found * class_count + np.arange(class_count)) * BINS + bins
        self.histograms += np.bincount(cells.ravel(), minlength=self.histograms.size).reshape(self.histograms.shape)


def count_labels(labels: Labels, visit: Callable[[ScoredRows], None] | None = None) -> Counts:
    """Count all rows. ``visit`` is called with each chunk of rows with status ok.

    Raises:
        RequestError: the rows are not those of a labelling job, or do not fit the manifest.
        OSError: the storage failed.
    """
    class_count = len(labels.class_names)
    counts = Counts(np.zeros((2, class_count, BINS), np.int64))
    chunk_size = max(1, min(MAX_ROWS_PER_CHUNK, SCORES_PER_CHUNK // max(class_count, 1)))
    try:
        for file in labels.files():
            row = counts.file_starts[-1]
            with file:
                counts.file_starts.append(row + file.metadata.num_rows)
                for batch in file.iter_batches(chunk_size, columns=list(COLUMNS)):
                    counts.add_statuses(batch)
                    chunk = scored_rows(labels, batch, row)
                    counts.add_scores(chunk)
                    if visit is not None:
                        visit(chunk)
                    row += len(batch)
    except RequestError:  # it is a ValueError too
        raise
    except (pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{labels.location.url} holds rows that do not fit the manifest: {reason}") from error
    return counts


def scored_rows(labels: Labels, batch: pa.RecordBatch, first_row: int) -> ScoredRows:
    """The rows with status ok of a batch with `COLUMNS`.

    Raises:
        ValueError, KeyError: a column is missing, or there is not one score for each class.
        RequestError: a category is not in the manifest.
    """
    is_ok = pc.equal(batch["status"], Status.OK.value)
    ok = batch.filter(is_ok)
    scores = ok["class_scores"].flatten().to_numpy(zero_copy_only=False).reshape(len(ok), len(labels.class_names))
    classes = labels.categories_in(ok["annotations"]).to_numpy(zero_copy_only=False).astype(np.int64) - 1
    rows = first_row + np.flatnonzero(is_ok.to_numpy(zero_copy_only=False))
    return ScoredRows(rows, scores, pc.list_parent_indices(ok["annotations"]).to_numpy(), classes)
