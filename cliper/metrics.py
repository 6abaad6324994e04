"""Figures of segmentation and of image-level labels, as the field counts them."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision, binary_stat_scores


@dataclass(frozen=True)
class SegmentationFigures:
    """Shares from 0 to 1 over all pixels that count.

    Attributes:
        miou: mean of the classes' intersection over union.
        pixel_accuracy: pixels with the true label among all.
        mean_accuracy: mean over the classes of the pixels of the class that were found.
        iou: each class's intersection over union, by name; None where the class has no pixels in the truth, and then
            it does not count in the means.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: dict[str, float | None]


@dataclass(frozen=True)
class PresenceFigures:
    """Image-level figures, 0 to 1.

    Attributes:
        map: mean average precision over the classes that occur.
        f1, precision, recall: of all decisions that a class is present, over all classes and pictures together.
    """

    map: float
    f1: float
    precision: float
    recall: float


def segmentation_figures(confusion: Int[Tensor, "labels labels"], names: Sequence[str]) -> SegmentationFigures:
    """Figures from a confusion matrix.

    Args:
        confusion: pixels; rows are true labels, columns predicted ones. The last ``len(names)`` labels are the classes;
            a label in front of them stands for no class and counts as a prediction only.
        names: the classes' names.
    """
    first = len(confusion) - len(names)
    hits, truth, predicted = confusion.diag().double(), confusion.sum(dim=1), confusion.sum(dim=0)
    iou = (hits / (truth + predicted - hits))[first:]
    recall = (hits / truth)[first:]
    counted = truth[first:] > 0
    return SegmentationFigures(
        miou=float(iou[counted].mean()) if counted.any() else 0.0,
        pixel_accuracy=float(hits[first:].sum() / max(int(truth.sum()), 1)),
        mean_accuracy=float(recall[counted].mean()) if counted.any() else 0.0,
        iou={name: float(iou[i]) if counted[i] else None for i, name in enumerate(names)},
    )


def presence_figures(
    scores: Float[Tensor, "pictures classes"],
    present: Int[Tensor, "pictures classes"],
    thresholds: Float[Tensor, " classes"],
) -> PresenceFigures:
    """Figures from max-pooled class scores (paper table 2).

    Args:
        scores: at least 0, any scale.
        present: 1 where the picture shows the class, else 0.
        thresholds: a class is taken for present where its score is above it.
    """
    decisions = (scores > thresholds).int().flatten()
    right, extra, _, missed, _ = binary_stat_scores(decisions, present.flatten()).tolist()
    return PresenceFigures(
        map=mean_average_precision(scores, present),
        f1=2 * right / max(2 * right + extra + missed, 1),
        precision=right / max(right + extra, 1),
        recall=right / max(right + missed, 1),
    )


def mean_average_precision(
    scores: Float[Tensor, "pictures classes"], present: Int[Tensor, "pictures classes"]
) -> float:
    """Mean over the classes that occur; 0 if none does."""
    shares = scores / scores.max().clamp(min=1.0)  # beyond 1 torchmetrics would take them for logits
    occurring = present.any(dim=0).nonzero().flatten().tolist()
    precisions = [float(binary_average_precision(shares[:, c], present[:, c])) for c in occurring]
    return sum(precisions) / max(len(precisions), 1)
