"""From the rows of an evaluation to its figures, and the figures as table, JSON and Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from cluster.output.folder import Output
from jobs.common.statistics import presence_figures, segmentation_figures
from schemas.rows import Status


@dataclass(frozen=True)
class EvaluationCounts:
    """Sums over the images of an evaluation.

    Attributes:
        confusion: pixels, rows true and columns predicted labels; label 0 is background or no class.
        scores: float32 [images, classes].
        present: 0 or 1 [images, classes].
        failed: images without figures.
        seconds: time for labelling, all images together.
    """

    confusion: np.ndarray
    scores: np.ndarray
    present: np.ndarray
    failed: int
    seconds: float

    @property
    def images(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Figures:
    """What is known about one way of labelling a data set; shares in percent.

    Attributes:
        title: what was evaluated.
        miou, pixel_accuracy, mean_accuracy, iou: of the label maps (`jobs.common.statistics.SegmentationFigures`).
        map, f1, precision, recall: at image level (`jobs.common.statistics.PresenceFigures`).
        images: how many images counted.
        failed: how many could not be evaluated.
        seconds_per_image: time for labelling one image in its actor.
        published: the published mean IoU for these settings, if there is one.
        settings: the method's settings.
    """

    title: str
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: dict[str, float | None]
    map: float
    f1: float
    precision: float
    recall: float
    images: int
    failed: int
    seconds_per_image: float
    published: float | None
    settings: dict[str, Any]

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.miou - self.published

    def document(self) -> dict[str, Any]:
        return asdict(self)


def count_rows(output: Output, classes: int) -> EvaluationCounts:
    """Sum the rows of an evaluation, file by file.

    Args:
        output: where the rows are (`schemas.evaluation.EVALUATION_SCHEMA`).
        classes: number of classes.
    """
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    scores, present = [np.zeros((0, classes), np.float32)], [np.zeros((0, classes), np.int64)]
    failed, seconds = 0, 0.0
    for rows in read_rows(output):
        ok = rows.filter(pc.equal(rows["status"], Status.OK))
        failed += len(rows) - len(ok)
        if not len(ok):
            continue
        pairs = pc.list_flatten(ok["confusion"]).combine_chunks()
        truth, predicted, pixels = (
            pc.struct_field(pairs, name).to_numpy() for name in ("truth", "predicted", "pixels")
        )
        np.add.at(confusion, (truth, predicted), pixels)
        scores.append(pc.list_flatten(ok["class_scores"]).to_numpy().reshape(len(ok), classes))
        present.append(indicator(ok["present"].to_pylist(), classes))
        seconds += pc.sum(ok["seconds"]).as_py()
    return EvaluationCounts(confusion, np.concatenate(scores), np.concatenate(present), failed, seconds)


def read_rows(output: Output) -> Iterable[pa.Table]:
    for path in output.rows_files():
        with output.location.fs.open(path, "rb") as file:
            yield pq.ParquetFile(file).read()


def indicator(present: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """1 where a image shows a class [images, classes], from lists of labels; label 0 is no class."""
    table = np.zeros((len(present), classes), np.int64)
    for row, labels in zip(table, present, strict=True):
        row[[label - 1 for label in labels if label]] = 1
    return table


def figures_of(
    title: str, counts: EvaluationCounts, label_names: Sequence[str], thresholds: Sequence[float],
    published: float | None, settings: dict[str, Any],
) -> Figures:  # fmt: skip
    """Figures from counts.

    Args:
        title: what was evaluated.
        counts: of its rows.
        label_names: names of the labels that count, the last ones of the confusion matrix.
        thresholds: per class, the score above which it is taken for present.
        published: mean IoU in percent, or None.
        settings: the method's.
    """
    segmentation = segmentation_figures(counts.confusion, label_names)
    presence = presence_figures(counts.scores, counts.present, thresholds)
    shares = {name: 100 * value for name, value in vars(segmentation).items() if name != "iou"}
    iou = {name: None if share is None else 100 * share for name, share in segmentation.iou.items()}
    seconds = counts.seconds / max(counts.images, 1)
    return Figures(
        title, **shares, iou=iou, **{name: 100 * value for name, value in vars(presence).items()}, images=counts.images,
        failed=counts.failed, seconds_per_image=seconds, published=published, settings=settings,
    )  # fmt: skip


HEADINGS = (
    "",
    "mIoU",
    "published",
    "difference",
    "pixel acc.",
    "mean acc.",
    "mAP",
    "F1",
    "precision",
    "recall",
    "s/image",
)


def cells(figures: Figures) -> list[str]:
    """A row below `HEADINGS`."""

    def shown(value: float | None, form: str = ".1f") -> str:
        return "" if value is None else format(value, form)

    shares = (figures.pixel_accuracy, figures.mean_accuracy, figures.map, figures.f1, figures.precision, figures.recall)
    return [
        figures.title, shown(figures.miou), shown(figures.published), shown(figures.difference, "+.1f"),
        *map(shown, shares), shown(figures.seconds_per_image, ".3f"),
    ]  # fmt: skip


FOR_TERMINALS = tuple(HEADINGS.index(name) for name in ("", "mIoU", "published", "difference", "mAP", "F1", "s/image"))
"""Columns that fit into 80 characters; the others are in JSON and Markdown."""


def figures_table(heading: str, results: Sequence[Figures]) -> Table:
    """All results, one below the other, for a terminal."""
    table = Table(title=heading, title_justify="left")
    for column in FOR_TERMINALS:
        table.add_column(HEADINGS[column], justify="right" if column else "left")
    for figures in results:
        row = cells(figures)
        table.add_row(*(row[column] for column in FOR_TERMINALS))
    return table


def class_table(figures: Figures) -> Table:
    """Intersection over union of every class."""
    table = Table(title="IoU by class", title_justify="left")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, share in figures.iou.items():
        table.add_row(name, "not in the truth" if share is None else f"{share:.1f}")
    return table


def markdown(heading: str, results: Sequence[Figures]) -> str:
    """All results as a Markdown table."""
    lines = [f"## {heading}", "", "| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(figures)) + " |" for figures in results]
    return "\n".join(lines) + "\n"
