"""Statistics of label maps and of image-level labels. NumPy alone, because `jobs.filter` starts without torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


def segmentation_figures(confusion: Int[np.ndarray, "labels labels"], names: Sequence[str]) -> dict[str, Any]:
    """``miou``, ``pixel_accuracy``, ``mean_accuracy`` and, by class name, ``iou``: shares over all pixels that count.

    A class without pixels in the ground truth does not count in the means. Its ``iou`` is None.

    Args:
        confusion: numbers of pixels. Rows are true labels, columns predicted ones. The last ``len(names)`` labels are
            the classes. A label before them stands for no class and counts as a prediction only.
        names: of the classes.
    """
    first = len(confusion) - len(names)
    hits, positives, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    iou = intersection_over_union(hits, positives, predicted)[first:]
    counted = positives[first:] > 0
    recall = hits[first:][counted] / positives[first:][counted]
    return {
        "miou": float(iou[counted].mean()) if counted.any() else 0.0,
        "pixel_accuracy": float(hits[first:].sum() / max(positives.sum(), 1)),
        "mean_accuracy": float(recall.mean()) if counted.any() else 0.0,
        "iou": {name: float(iou[i]) if counted[i] else None for i, name in enumerate(names)},
    }


def intersection_over_union(
    hits: Shaped[np.ndarray, " *shape"],
    positives: Shaped[np.ndarray, " *#shape"] | int,
    predicted: Shaped[np.ndarray, " *shape"],
) -> Float[np.ndarray, " *shape"]:
    """Pixels that are and are predicted, among those that are or are predicted; NaN where there are none."""
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = hits / (positives + predicted - hits)
    return shares


def presence_figures(
    scores: Float[np.ndarray, "images classes"],
    present: Shaped[np.ndarray, "images classes"],
    thresholds: Sequence[float],
) -> dict[str, float]:
    """Image-level figures from max-pooled class scores (paper table 2).

    ``map`` is the mean average precision over the classes that occur. ``f1``, ``precision`` and ``recall`` are those of
    all decisions that a class is present, over all classes and images together.

    Args:
        scores: float32, at least 0, on any scale.
        present: nonzero where the image shows the class.
        thresholds: per class. A class is taken for present where its score is above its threshold.
    """
    decisions = scores > np.asarray(thresholds, np.float32)
    hits = (decisions & (present > 0)).sum()
    precision, recall, f1 = np.nan_to_num(precision_recall_f1(hits, decisions.sum(), present.sum())).tolist()
    return {"map": mean_average_precision(scores, present), "f1": f1, "precision": precision, "recall": recall}


def mean_average_precision(
    scores: Float[np.ndarray, "images classes"], present: Shaped[np.ndarray, "images classes"]
) -> float:
    """Mean over the classes that occur; 0 if none does."""
    import torch  # here, because it takes seconds to import
    from torchmetrics.functional.classification import binary_average_precision

    shares = torch.from_numpy(scores / max(scores.max(initial=0), 1))  # torchmetrics takes values above 1 for logits
    labels = torch.from_numpy(present)
    precisions = [
        float(binary_average_precision(shares[:, c], labels[:, c])) for c in np.flatnonzero(present.any(axis=0))
    ]
    return sum(precisions) / max(len(precisions), 1)


def calibration_error(probabilities: Float[np.ndarray, " *shape"], present: Shaped[np.ndarray, " *shape"]) -> float:
    """Expected calibration error: mean distance of probabilities from frequencies, in ten bins of probability."""
    import torch  # here, because it takes seconds to import
    from torchmetrics.functional.classification import binary_calibration_error

    flat = torch.from_numpy(probabilities.ravel()), torch.from_numpy(present.ravel() > 0)
    return float(binary_calibration_error(*flat, n_bins=10, norm="l1"))


def precision_recall_f1(hits: np.ndarray, found: np.ndarray, positives: np.ndarray | int) -> Float[np.ndarray, "3 ..."]:
    """Precision, recall and F1 from counts, stacked; NaN where undefined."""
    with np.errstate(invalid="ignore"):
        return np.stack([hits / found, hits / positives, 2 * hits / (found + positives)])


def threshold_figures(
    scores: Float[np.ndarray, " images"],
    present: Bool[np.ndarray, " images"],
    thresholds: Float[np.ndarray, " thresholds"],
) -> Float[np.ndarray, "3 thresholds"]:
    """Precision, recall and F1 of ``score > threshold``; NaN where undefined. All scores are float32."""
    order = np.argsort(scores)
    first = np.searchsorted(scores, thresholds, side="right", sorter=order)  # in order, the first score above
    positives = present.sum()
    return precision_recall_f1(
        positives - np.append(0, np.cumsum(present[order]))[first], len(scores) - first, positives
    )


def best_thresholds(
    scores: Float[np.ndarray, " images"], present: Bool[np.ndarray, " images"]
) -> Float[np.ndarray, " best"]:
    """All thresholds with the best F1 of ``score > threshold``, ascending: 0, or scores below the largest."""
    candidates = np.unique(np.append(scores[scores < scores.max()], np.float32(0)))
    f1 = np.nan_to_num(threshold_figures(scores, present, candidates)[2])
    best: np.ndarray = candidates[f1 == f1.max()]
    return best
