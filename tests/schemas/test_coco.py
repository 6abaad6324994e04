"""Rows as COCO, and back."""

import io
import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from schemas.coco import RESULT_FIELDS, annotations_file, results_file, uncompressed
from schemas.runs import annotations_from_labels

CLASSES = 3
LABEL_MAPS = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, CLASSES)
)
SCORES = np.arange(1, CLASSES + 1, dtype=np.float32) / 4


def pixels(annotation: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """The mask as pycocotools decodes it, from any form of segmentation."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *shape)
    decoded = coco_mask.decode(segmentation)
    return decoded.any(axis=2) if decoded.ndim == 3 else decoded.astype(bool)


@given(labels=LABEL_MAPS)
def test_uncompressed_masks_come_back(labels: np.ndarray) -> None:
    rebuilt = np.zeros_like(labels)
    for annotation in annotations_from_labels(labels, SCORES):
        mask = pixels(annotation | {"segmentation": uncompressed(annotation["segmentation"])}, labels.shape)
        assert not rebuilt[mask].any()
        rebuilt[mask] = annotation["category_id"]
    assert np.array_equal(rebuilt, labels)


@given(labels=st.lists(LABEL_MAPS, max_size=4))
def test_files_are_written_piece_by_piece_and_whole(labels: list[np.ndarray]) -> None:
    written, written_results = io.BytesIO(), io.BytesIO()
    categories = [{"id": 1, "name": "Stra\u00dfe \u732b"}]
    expected = []
    with annotations_file(written, categories, "drawn") as add, results_file(written_results) as add_results:
        for image_id, label_map in enumerate(labels, start=1):
            found = [entry | {"image_id": image_id} for entry in annotations_from_labels(label_map, SCORES)]
            expected += found
            add({"id": image_id}, found)
            add_results({"id": image_id}, found)
    document = json.loads(written.getvalue())
    assert document["categories"] == categories
    assert document["images"] == [{"id": image_id} for image_id in range(1, len(labels) + 1)]
    assert document["annotations"] == expected
    listed = json.loads(written_results.getvalue())
    assert listed == [{name: entry[name] for name in RESULT_FIELDS} for entry in expected]
