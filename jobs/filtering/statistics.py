"""Statistics to choose thresholds by: histograms of scores, and precision, recall and F1 of thresholds."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from cluster.output.rows import Labels
from jobs.common.counts import BINS_PER_UNIT, Counts, count_labels
from jobs.common.statistics import best_thresholds, threshold_figures
from jobs.filtering.ground_truth import read_ground_truth
from schemas.errors import RequestError

TENTHS = 10
CLASSES_SHOWN = 20
BARS = " ▁▂▃▄▅▆▇█"
THRESHOLDS = np.arange(1, 10, dtype=np.float32) / 10
BATCH_ROWS = 64 * 1024


def show_stats(labels: Labels, classes: Sequence[str], truth: str | None, console: Console) -> None:
    """Print a histogram of every class and, given a ground truth, the quality of thresholds.

    Raises:
        RequestError: the ground truth cannot be used.
    """
    names = labels.class_names
    counts = count_labels(labels)
    most_frequent = np.argsort(-counts.images_by_class, kind="stable")[:CLASSES_SHOWN].tolist()
    chosen = [names.index(name) for name in classes] or most_frequent
    console.print(histogram_table(names, counts, chosen))
    if truth is not None:
        scores, present = scores_and_ground_truth(labels, read_ground_truth(truth, names), chosen)
        console.print(quality_table([names[index] for index in chosen], scores, present))


def histogram_table(names: Sequence[str], counts: Counts, chosen: Sequence[int]) -> Table:
    """A histogram of every chosen class. The last tenth includes all scores above 1."""
    title = f"Scores of {counts.ok:,} images, by tenths"
    number = partial(Column, justify="right", no_wrap=True)
    columns = [Column("class", min_width=8), number("present"), Column("spread", no_wrap=True)]
    columns += [number(f"{start / TENTHS:.1f}") for start in range(TENTHS)]
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    starts = np.arange(TENTHS) * BINS_PER_UNIT // TENTHS
    histogram = np.add.reduceat(counts.histograms.sum(axis=0), starts, axis=1)
    for index in chosen:
        tallest = max(histogram[index].max(), 1)
        bars = "".join(BARS[-(-int(count) * (len(BARS) - 1) // tallest)] for count in histogram[index])
        table.add_row(names[index], short(counts.images_by_class[index]), bars, *map(short, histogram[index]))
    return table


def short(count: int) -> str:
    """A count in at most five characters, so that a histogram fits into 80 columns."""
    return str(count) if count < 1000 else f"{count / 1000:.0f}k" if count < 10**6 else f"{count / 10**6:.1f}M"


def scores_and_ground_truth(labels: Labels, pairs: pa.Table, chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (float32) and ground truth (bool) of the images that have both, [images, chosen].

    Raises:
        RequestError: there are no such images.
    """
    names = labels.class_names
    all_ids = pairs["image_id"].unique()
    ids_by_class = [pairs["image_id"].filter(pc.equal(pairs["class"], names[index])) for index in chosen]
    scores, present = [], []
    for batch in labels.batches(["class_scores", "image_id"], BATCH_ROWS):
        known = batch.filter(pc.is_in(batch["image_id"], all_ids))
        scores.append(known["class_scores"].flatten().to_numpy().reshape(-1, len(names))[:, chosen])
        present.append(np.stack([pc.is_in(known["image_id"], ids) for ids in ids_by_class], axis=1))
    if not sum(map(len, scores)):
        raise RequestError("--truth has none of the images: image_id must be as in the rows")
    return np.concatenate(scores), np.concatenate(present)


def quality_table(names: Sequence[str], scores: np.ndarray, present: np.ndarray) -> Table:
    title = f"Precision / recall / F1 of score > threshold, {len(scores):,} images"
    headings = ("class", "true", *(f"{threshold:.1f}" for threshold in THRESHOLDS), "best")
    table = Table(*headings, title=title, title_justify="left")
    for name, class_scores, is_present in zip(names, scores.T, present.T, strict=True):
        best = best_thresholds(class_scores, is_present)[-1]
        *cells, best_cell = (
            "\n".join("-" if np.isnan(value) else f"{value:.2f}" for value in values)
            for values in threshold_figures(class_scores, is_present, np.append(THRESHOLDS, best)).T
        )
        table.add_row(name, f"{is_present.sum():,}", *cells, f"> {best:.4g}\n{best_cell}", end_section=True)
    return table
