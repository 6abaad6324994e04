"""From a label map to COCO annotations, and back."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def annotations_from_labels(labels: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """One annotation per class present, ascending ``category_id``; together they cover all labelled pixels once.

    One pass over the pixels finds the runs of all classes.

    Args:
        labels: integers [height, width]; 0 is background, c + 1 is class c.
        scores: float [classes].

    Returns:
        Dictionaries with the fields of `schemas.rows.ANNOTATION`.
    """
    column_major = labels.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(column_major)) + 1])
    ends = np.append(starts[1:], column_major.size)
    run_labels = column_major[starts]
    by_label = np.argsort(run_labels, kind="stable")
    category_ids, first_runs = np.unique(run_labels[by_label], return_index=True)
    annotations = []
    for category_id, runs in zip(category_ids.tolist(), np.split(by_label, first_runs[1:]), strict=True):
        if category_id > 0:
            counts = run_lengths(starts[runs], ends[runs], column_major.size)
            annotations.append(annotation(counts, labels.shape, category_id, float(scores[category_id - 1])))
    return annotations


def run_lengths(starts: np.ndarray, ends: np.ndarray, size: int) -> np.ndarray:
    """COCO's uncompressed counts of a mask with these runs: pixels outside, inside, outside, and so on."""
    edges = np.column_stack([starts, ends]).ravel()
    counts = np.diff(edges, prepend=0, append=size)
    return counts if counts[-1] else counts[:-1]


def annotation(counts: np.ndarray, shape: tuple[int, ...], category_id: int, score: float) -> dict[str, Any]:
    """COCO annotation of one mask (stuff convention: ``iscrowd`` 0)."""
    encoded = coco_mask.frPyObjects({"size": list(shape), "counts": counts}, *shape)
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
    for entry in annotations:
        labels[coco_mask.decode(entry["segmentation"]).astype(bool)] = entry["category_id"]
    return labels
