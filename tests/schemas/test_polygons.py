"""Polygons, rasterised by pycocotools and, independently, by counting crossings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from scipy import ndimage

from demo.world.scene import draw
from schemas.polygons import LEAST_OVERLAP, polygons

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.booleans())
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def by_pycocotools(rings: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    found = np.zeros(shape, bool)
    for mask in coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *shape) if rings else ():
        found |= coco_mask.decode(mask).astype(bool)
    return found


def by_crossings(ring: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels from whose centres a line upwards crosses the ring an odd number of times."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    x = x + 1e-4  # beside the points, which lie on centres' coordinates
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        between = (x0 <= x) != (x1 <= x)
        if x0 != x1:
            inside ^= between & (y0 + (x - x0) / (x1 - x0) * (y1 - y0) < y)
    return inside


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@given(mask=MASKS)
def test_exact_polygons_have_the_pixels_of_the_mask_and_leave_its_holes_open(mask: np.ndarray) -> None:
    rings = polygons(mask)
    assert np.array_equal(by_pycocotools(rings, mask.shape), mask)
    found = np.zeros_like(mask)
    for ring in rings:
        found ^= by_crossings(ring, mask.shape)
    assert np.array_equal(found, mask)


@given(mask=MASKS, simplify_px=st.sampled_from([0.0, 0.3, 1.0, 5.0]))
def test_every_component_is_one_ring_inside_the_image(mask: np.ndarray, simplify_px: float) -> None:
    rings = polygons(mask, simplify_px)
    assert len(rings) == ndimage.label(mask, EIGHT_NEIGHBOURS)[1]
    for ring in rings:
        assert len(ring) >= 3
        assert (ring >= 0).all()
        assert (ring <= mask.shape[::-1]).all()


@given(mask=MASKS, simplify_px=st.sampled_from([0.3, 1.0, 5.0]))
def test_simplified_polygons_overlap_with_any_mask(mask: np.ndarray, simplify_px: float) -> None:
    if mask.any():
        assert overlap(by_pycocotools(polygons(mask, simplify_px), mask.shape), mask) >= LEAST_OVERLAP


def test_holes_in_holes_and_beside_each_other_stay() -> None:
    mask = np.zeros((60, 90), bool)
    mask[5:55, 5:85] = True
    for left in range(10, 80, 12):
        mask[10:20, left : left + 6] = False
        mask[30:50, left : left + 8] = False
        mask[36:44, left + 2 : left + 6] = True
    for simplify_px in (0.0, 1.0):
        rings = polygons(mask, simplify_px)
        assert len(rings) == 7
        assert overlap(by_pycocotools(rings, mask.shape), mask) >= (1.0 if simplify_px == 0 else LEAST_OVERLAP)


def test_masks_of_drawn_images_keep_few_points() -> None:
    exact, simplified = [], []
    for seed in range(10):
        labels = draw(seed, 480, 640).labels
        for category in np.unique(labels[labels > 0]):
            mask = labels == category
            rings = polygons(mask, simplify_px=1.0)
            assert overlap(by_pycocotools(rings, mask.shape), mask) >= LEAST_OVERLAP
            simplified.append(sum(map(len, rings)))
            exact.append(sum(map(len, polygons(mask))))
    assert np.median(exact) > 1000
    assert np.median(simplified) < 60


@pytest.mark.parametrize("shape", [(0, 0), (3, 4)])
def test_an_empty_mask_has_no_polygons(shape: tuple[int, int]) -> None:
    assert polygons(np.zeros(shape, bool), 1.0) == []
