"""From the rows of an evaluation to its figures, and the figures as table, JSON and Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Column, Table

from cliper.preprocess import InputSpec
from cluster.output.folder import Output
from cluster.output.summary import coarser_images, coarser_sentence
from jobs.common.statistics import presence_figures, segmentation_figures
from schemas.rows import Status

Figures = dict[str, Any]
"""Figures by name, from `figures_of`."""


@dataclass(frozen=True)
class Comparison:
    """What is published about an evaluation.

    Attributes:
        published: mean IoU in percent; None if none is published for exactly this.
        differences: what is other than in the evaluation that was published; empty for a data set of one's own.
    """

    published: float | None = None
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationCounts:
    """Sums over the images of an evaluation.

    Attributes:
        confusion: pixels, rows true and columns predicted labels; label 0 is background or no class.
        scores: float32 [images, classes].
        present: 0 or 1 [images, classes].
        failed: images without figures.
        seconds: time for labelling, all images together.
        coarser: panoramas that were seen on a coarser grid.
    """

    confusion: np.ndarray
    scores: np.ndarray
    present: np.ndarray
    failed: int
    seconds: float
    coarser: int

    @property
    def images(self) -> int:
        return len(self.scores)


def count_rows(output: Output, classes: int, inputs: InputSpec) -> EvaluationCounts:
    """Sum the rows of an evaluation (`schemas.evaluation.EVALUATION_SCHEMA`), file by file.

    Args:
        output: the rows.
        classes: number of classes.
        inputs: how images were prepared.
    """
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    scores, present = [np.zeros((0, classes), np.float32)], [np.zeros((0, classes), np.int64)]
    failed, seconds, coarser = 0, 0.0, 0
    for rows in read_rows(output):
        ok = rows.filter(pc.equal(rows["status"], Status.OK))
        failed += len(rows) - len(ok)
        coarser += coarser_images(rows, inputs)
        add_counts(confusion, ok["confusion"], ("truth", "predicted"), "pixels")
        scores.append(pc.list_flatten(ok["class_scores"]).to_numpy().reshape(len(ok), classes))
        present.append(indicator(ok["present"].to_pylist(), classes))
        seconds += pc.sum(ok["seconds"]).as_py() or 0
    return EvaluationCounts(confusion, np.concatenate(scores), np.concatenate(present), failed, seconds, coarser)


def read_rows(output: Output) -> Iterable[pa.Table]:
    for path in output.rows_files():
        with output.location.fs.open(path, "rb") as file:
            yield pq.ParquetFile(file).read()


def add_counts(sums: np.ndarray, lists: pa.ChunkedArray, indices: Sequence[str], count: str) -> None:
    """Add a field of all structs in the lists to the sums, at the place that other fields say."""
    *places, counts = (pc.struct_field(pc.list_flatten(lists), name).to_numpy() for name in (*indices, count))
    np.add.at(sums, tuple(places), counts)


def indicator(present: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """1 where an image shows a class [images, classes], from lists of labels; label 0 is no class."""
    table = np.zeros((len(present), classes), np.int64)
    for row, labels in zip(table, present, strict=True):
        row[[label - 1 for label in labels if label]] = 1
    return table


def figures_of(
    title: str, counts: EvaluationCounts, label_names: Sequence[str], thresholds: Sequence[float],
    comparison: Comparison, settings: dict[str, Any], images_seen: int = 0,
) -> Figures:  # fmt: skip
    """What is known about one way of labelling a data set. Shares are in percent.

    Args:
        title, counts: what was evaluated, and its counts.
        label_names: names of the labels that count, the last ones of the confusion matrix.
        thresholds: per class, the score above which it is taken for present.
        comparison: with what is published.
        settings: the method's.
        images_seen: how many of the images the settings were tuned on.

    Returns:
        ``title`` and ``settings``; ``published``, the published mean IoU in percent or None, and
        ``differs_from_published``, what is other than there; the figures of `segmentation_figures` and
        `presence_figures`; ``images`` that counted, ``failed`` ones, ``coarser_grid``, panoramas on a coarser grid, and
        ``seconds_per_image`` for labelling one in its actor.
    """
    shares = segmentation_figures(counts.confusion, label_names)
    shares |= presence_figures(counts.scores, counts.present, thresholds)
    return {
        "title": title,
        **{name: percent(share) for name, share in shares.items()},
        "images": counts.images,
        "failed": counts.failed,
        "coarser_grid": counts.coarser,
        "seconds_per_image": counts.seconds / max(counts.images, 1),
        "published": comparison.published,
        "differs_from_published": list(comparison.differences),
        "images_seen": images_seen,
        "settings": settings,
    }


def percent(share: Any) -> Any:
    """A share, or shares by name, in percent."""
    if isinstance(share, dict):
        return {name: percent(value) for name, value in share.items()}
    return None if share is None else 100 * share


COLUMNS = {
    "mIoU": ("miou", ".1f"), "published": ("published", ".1f"), "difference": ("difference", "+.1f"),
    "pixel acc.": ("pixel_accuracy", ".1f"), "mean acc.": ("mean_accuracy", ".1f"), "mAP": ("map", ".1f"),
    "F1": ("f1", ".1f"), "precision": ("precision", ".1f"), "recall": ("recall", ".1f"),
    "s/image": ("seconds_per_image", ".3f"),
}  # fmt: skip
"""By heading, the name of a figure and the format of its numbers."""
FOR_TERMINALS = ("mIoU", "published", "difference", "mAP", "F1", "s/image")
"""Columns that fit into 80 characters; the others are in JSON and Markdown."""


def cells(figures: Figures, headings: Iterable[str]) -> list[str]:
    """The title, and what is known below the headings."""
    published = figures["published"]
    known = figures | {"difference": None if published is None else figures["miou"] - published}
    values = [(known[name], form) for name, form in map(COLUMNS.__getitem__, headings)]
    return [figures["title"], *("" if value is None else format(value, form) for value, form in values)]


def figures_table(heading: str, results: Sequence[Figures]) -> Table:
    """All results, one below the other, for a terminal."""
    columns = [Column(name, justify="right") for name in FOR_TERMINALS]
    table = Table("", *columns, title=heading, title_justify="left")
    for figures in results:
        table.add_row(*cells(figures, FOR_TERMINALS))
    return table


def notes(results: Sequence[Figures]) -> list[str]:
    """What must be said beside results: what differs from the published evaluation, settings that know the images."""
    said = []
    for figures in results:
        if figures["differs_from_published"]:
            said.append(f"No published figure for {figures['title']}: {'; '.join(figures['differs_from_published'])}.")
        if figures["coarser_grid"]:
            said.append(f"{figures['title']}: {coarser_sentence(figures['coarser_grid'])}")
        if seen := figures["images_seen"]:
            said.append(f"{figures['title']}: the settings file was tuned on {seen:,} of these images.")
    return said


def class_table(figures: Figures) -> Table:
    """Intersection over union of every class."""
    table = Table("class", Column("IoU", justify="right"), title="IoU by class", title_justify="left")
    for name, share in figures["iou"].items():
        table.add_row(name, "not in the truth" if share is None else f"{share:.1f}")
    return table


def markdown(heading: str, results: Sequence[Figures]) -> str:
    """All results as a Markdown table."""
    rows = [["", *COLUMNS], *([cell.replace("|", "\\|") for cell in cells(figures, COLUMNS)] for figures in results)]
    first, *others = ("| " + " | ".join(row) + " |" for row in rows)
    remarks = [line for note in notes(results) for line in ("", note)]
    return "\n".join([f"## {heading}", "", first, "|---" * len(rows[0]) + "|", *others, *remarks]) + "\n"
