"""From a label map, or its runs, to COCO annotations, and back.

Runs are stretches of pixels with one label, in column-major order, as COCO counts pixels: ``starts`` holds the first
pixel of each run, ascending, from 0, and ``labels`` its label; 0 is background, c + 1 is class c.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from schemas.errors import RequestError


def annotations_from_runs(
    starts: np.ndarray, labels: np.ndarray, image_hw: tuple[int, int], scores: np.ndarray
) -> list[dict[str, Any]]:
    """One annotation per class present, ascending ``category_id``; together they cover all labelled pixels once.

    The cost grows with the runs, not with the pixels.

    Args:
        starts, labels: integers [runs].
        image_hw: height and width of the label map.
        scores: float [classes].

    Returns:
        Dictionaries with the fields of `schemas.rows.ANNOTATION`.
    """
    size = image_hw[0] * image_hw[1]
    ends = np.append(starts[1:], size)
    by_label = np.argsort(labels, kind="stable")
    category_ids, first_runs = np.unique(labels[by_label], return_index=True)
    annotations = []
    for category_id, runs in zip(category_ids.tolist(), np.split(by_label, first_runs[1:]), strict=True):
        if category_id > 0:
            counts = run_lengths(starts[runs], ends[runs], size)
            annotations.append(annotation(counts, image_hw, category_id, float(scores[category_id - 1])))
    return annotations


def run_lengths(starts: np.ndarray, ends: np.ndarray, size: int) -> np.ndarray:
    """COCO's uncompressed counts of a mask with these runs: pixels outside, inside, outside, and so on."""
    edges = np.column_stack([starts, ends]).ravel()
    counts = np.diff(edges, prepend=0, append=size)
    return counts if counts[-1] else counts[:-1]


def annotation(counts: np.ndarray, image_hw: tuple[int, int], category_id: int, score: float) -> dict[str, Any]:
    """COCO annotation of one mask (stuff convention: ``iscrowd`` 0)."""
    encoded = coco_mask.frPyObjects({"size": list(image_hw), "counts": counts}, *image_hw)
    return {
        "category_id": category_id,
        "score": score,
        "area": int(coco_mask.area(encoded)),
        "bbox": coco_mask.toBbox(encoded).tolist(),
        "iscrowd": 0,
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
    }


def annotations_from_labels(labels: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """Annotations of a label map: integers [height, width]; see `annotations_from_runs`."""
    column_major = labels.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(column_major)) + 1])
    return annotations_from_runs(starts, column_major[starts], (labels.shape[0], labels.shape[1]), scores)


def labels_from_runs(starts: np.ndarray, labels: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """The label map of runs, [height, width] in the labels' own type."""
    lengths = np.diff(starts, append=image_hw[0] * image_hw[1])
    return np.repeat(labels, lengths).reshape(image_hw[::-1]).T


def labels_from_annotations(annotations: Iterable[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """The label map that annotations came from: int32 [height, width], 0 is background, else the ``category_id``.

    Raises:
        RequestError: as `pixels_of` does.
    """
    labels = np.zeros((height, width), np.int32)
    for entry in annotations:
        labels[pixels_of(entry["segmentation"], height, width)] = entry["category_id"]
    return labels


def pixels_of(segmentation: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """The pixels of a mask, bool [height, width].

    Raises:
        RequestError: it has another size than the image, or its run lengths do not fit, as only in damaged or foreign
            rows.
    """
    check_size(segmentation, height, width)
    try:
        pixels: np.ndarray = coco_mask.decode(segmentation)
    except ValueError as error:
        raise RequestError(f"the labels are damaged: a mask of {height} x {width} cannot be decoded") from error
    return pixels.astype(bool)


def check_size(segmentation: Mapping[str, Any], height: int, width: int) -> None:
    """Raises RequestError: a mask has another size than its image."""
    if list(segmentation["size"]) != [height, width]:
        size = " x ".join(map(str, segmentation["size"]))
        raise RequestError(f"the labels are damaged: an image of {height} x {width} has a mask of {size}")
