"""From a label map to COCO annotations, and back."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def annotations_from_labels(labels: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """One annotation per class present, ascending ``category_id``; together they cover all labelled pixels once.

    Args:
        labels: integers [height, width]; 0 is background, c + 1 is class c.
        scores: float [classes].

    Returns:
        Dictionaries with the fields of `schemas.rows.ANNOTATION`.
    """
    return [
        annotation_from_mask(labels == category_id, category_id, float(scores[category_id - 1]))
        for category_id in np.unique(labels).tolist()
        if category_id > 0
    ]


def annotation_from_mask(mask: np.ndarray, category_id: int, score: float) -> dict[str, Any]:
    """COCO annotation of one boolean mask [height, width] (stuff convention: ``iscrowd`` 0)."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": category_id,
        "score": score,
        "area": int(coco_mask.area(encoded)),
        "bbox": coco_mask.toBbox(encoded).tolist(),
        "iscrowd": 0,
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
    }


def labels_from_annotations(annotations: Iterable[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """The label map that annotations came from: int32 [height, width], 0 is background, else the ``category_id``."""
    labels = np.zeros((height, width), np.int32)
    for annotation in annotations:
        labels[coco_mask.decode(annotation["segmentation"]).astype(bool)] = annotation["category_id"]
    return labels
