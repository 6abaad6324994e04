"""How scores spread and how right thresholds would be, to choose thresholds by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cluster.output.rows import Labels
from jobs.filtering.conditions import check_class
from jobs.filtering.truth_table import read_truth
from schemas.errors import RequestError

BINS = 10
MOST_FREQUENT = 20
BARS = " ▁▂▃▄▅▆▇█"
THRESHOLDS = np.arange(1, 10, dtype=np.float32) / 10
BATCH_ROWS = 64 * 1024


@dataclass(frozen=True)
class Quality:
    """How right it is to call a class present where its score is above a threshold; NaN where undefined."""

    threshold: float
    precision: float
    recall: float
    f1: float


def check_stats(stats: bool, classes: Sequence[str], truth: str | None, labels: Labels) -> None:
    """Raises RequestError: options that do not fit together, or a class that is not in the vocabulary."""
    if not stats and (classes or truth):
        raise RequestError("--classes and --truth belong to --stats")
    for name in classes:
        check_class("--classes", name, labels.class_names)


def show_stats(labels: Labels, classes: Sequence[str], truth: str | None, console: Console) -> None:
    """Print a histogram of every class, and with a truth the quality of thresholds.

    Raises:
        RequestError: the truth cannot be used.
    """
    names = labels.class_names
    histogram, present = score_histogram(labels)
    chosen = [names.index(name) for name in classes] or np.argsort(-present, kind="stable")[:MOST_FREQUENT].tolist()
    console.print(histogram_table(names, histogram, present, chosen))
    if truth is not None:
        scores, is_present = scores_with_truth(labels, *read_truth(truth, names), chosen)
        console.print(quality_table([names[index] for index in chosen], scores, is_present))


def score_batches(labels: Labels, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    """Batches of rows, with their scores as float32 [rows, classes]."""
    for batch in labels.batches(["class_scores", *columns], BATCH_ROWS):
        yield batch["class_scores"].flatten().to_numpy().reshape(len(batch), len(labels.class_names)), batch


def score_histogram(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Pictures by class and tenth of the score (int64 [classes, 10], above 1 in the last), and by class present."""
    classes = len(labels.class_names)
    counts, present = np.zeros(classes * BINS, np.int64), np.zeros(classes, np.int64)
    for scores, batch in score_batches(labels, ["annotations.list.element.category_id"]):
        bins = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1) + np.arange(classes) * BINS
        counts += np.bincount(bins.ravel(), minlength=classes * BINS)
        categories = pc.struct_field(pc.list_flatten(batch["annotations"]), "category_id").to_numpy()
        present += np.bincount(categories - 1, minlength=classes)
    return counts.reshape(classes, BINS), present


def histogram_table(names: Sequence[str], histogram: np.ndarray, present: np.ndarray, chosen: Sequence[int]) -> Table:
    title = f"Scores of {histogram[0].sum():,} pictures, by tenths"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("class", min_width=8)
    table.add_column("present", justify="right", no_wrap=True)
    table.add_column("spread", no_wrap=True)
    for start in range(BINS):
        table.add_column(f"{start / BINS:.1f}", justify="right", no_wrap=True)
    for index in chosen:
        tallest = max(histogram[index].max(), 1)
        bars = "".join(BARS[-(-int(count) * (len(BARS) - 1) // tallest)] for count in histogram[index])
        table.add_row(names[index], short(present[index]), bars, *map(short, histogram[index]))
    return table


def short(count: int) -> str:
    """A count in four characters or five, so that a histogram fits into 80."""
    return str(count) if count < 1000 else f"{count / 1000:.0f}k" if count < 10**6 else f"{count / 10**6:.1f}M"


def scores_with_truth(
    labels: Labels, image_ids: pa.Array, truth: np.ndarray, chosen: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Of the pictures that have both: scores float32 and truth bool, [pictures, chosen].

    Raises:
        RequestError: there are no such pictures.
    """
    scores, rows = [], []
    for batch_scores, batch in score_batches(labels, ["image_id"]):
        found = pc.index_in(batch["image_id"], image_ids)
        has_truth = found.is_valid().to_numpy(zero_copy_only=False)
        scores.append(batch_scores[has_truth][:, chosen])
        rows.append(found.drop_null().to_numpy())
    if not sum(map(len, rows)):
        raise RequestError("--truth has none of the pictures: image_id must be as in the rows")
    return np.concatenate(scores), truth[np.concatenate(rows)][:, chosen]


def quality_table(names: Sequence[str], scores: np.ndarray, truth: np.ndarray) -> Table:
    title = f"Precision / recall / F1 of score > threshold, {len(scores):,} pictures"
    table = Table(title=title, title_justify="left")
    for heading in ("class", "true", *(f"{threshold:.1f}" for threshold in THRESHOLDS), "best"):
        table.add_column(heading)
    for name, class_scores, is_present in zip(names, scores.T, truth.T, strict=True):
        cells = [cell(quality(class_scores, is_present, float(threshold))) for threshold in THRESHOLDS]
        best = best_quality(class_scores, is_present)
        table.add_row(name, f"{is_present.sum():,}", *cells, f"> {best.threshold:.4g}\n{cell(best)}", end_section=True)
    return table


def cell(found: Quality) -> str:
    values = (found.precision, found.recall, found.f1)
    return "\n".join("-" if np.isnan(value) else f"{value:.2f}" for value in values)


def quality(scores: np.ndarray, truth: np.ndarray, threshold: float) -> Quality:
    """Quality of ``score > threshold``, compared as float32."""
    predicted = scores > np.float32(threshold)
    hits, found, there = int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum())
    precision, recall = (hits / count if count else float("nan") for count in (found, there))
    return Quality(threshold, precision, recall, 2 * hits / (found + there) if found + there else float("nan"))


def best_quality(scores: np.ndarray, truth: np.ndarray) -> Quality:
    """The threshold with the largest F1: a score that occurs or 0; the largest of several."""
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    last_of_value = np.append(descending[1:] != descending[:-1], True)
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(scores) + 1) + max(int(truth.sum()), 1))
    best = int(np.argmax(np.where(last_of_value & (descending > 0), f1, -1)))  # no threshold lets a score of 0 pass
    below = descending[best + 1] if best + 1 < len(scores) else np.float32(0)
    return quality(scores, truth, float(below))
