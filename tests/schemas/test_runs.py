import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from schemas.rows import ROW_SCHEMA
from schemas.runs import annotations_from_labels, labels_from_annotations

LABEL_MAPS = hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 4))


@given(LABEL_MAPS)
def test_masks_give_the_label_map_back(labels: np.ndarray) -> None:
    rebuilt = np.zeros_like(labels)
    annotations = annotations_from_labels(labels, np.arange(4, dtype=np.float32))
    for annotation in annotations:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        assert not rebuilt[mask].any(), "masks are disjoint"
        rebuilt[mask] = annotation["category_id"]
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        encoded = coco_mask.encode(np.asfortranarray(labels == annotation["category_id"], np.uint8))
        assert annotation["segmentation"]["counts"].encode() == encoded["counts"]
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == box
        assert annotation["score"] == annotation["category_id"] - 1
    assert np.array_equal(rebuilt, labels)
    assert np.array_equal(labels_from_annotations(annotations, *labels.shape), labels)


@given(LABEL_MAPS)
def test_annotations_fit_the_schema(labels: np.ndarray) -> None:
    annotations = annotations_from_labels(labels, np.ones(4, np.float32))
    column = pa.array([annotations], ROW_SCHEMA.field("annotations").type)
    assert column.to_pylist()[0] == annotations


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    (annotation,) = annotations_from_labels(np.ones(shape, np.int32), np.array([0.5], np.float32))
    assert annotation["segmentation"]["size"] == list(shape)
    assert annotation["area"] == shape[0] * shape[1]


def test_background_alone_gives_no_annotation() -> None:
    assert annotations_from_labels(np.zeros((3, 3), np.int32), np.ones(2)) == []
