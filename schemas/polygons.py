"""Masks as polygons.

A polygon is one closed outline for each connected component, pixels that touch at a corner included. A hole is joined
to the outline by a cut without width, there and back, so that one ring says everything. Rasterised by parity, as
pycocotools does, the cut has no pixels and the hole stays open.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import shapely
from contourpy import FillType, contour_generator
from pycocotools import mask as coco_mask

LEAST_OVERLAP = 0.98
"""Intersection over union of a mask and its simplified polygons, at least."""
LEAST_OVERLAP_OF_PART = 0.5
"""The same of a component, so that a small one does not vanish beside a large one. Else it stays exact."""
TRIANGLE_SIDE = 6.0
"""A corner goes if its triangle with its neighbours is smaller than about this times ``simplify_px``, squared."""
FINER, ATTEMPTS = 0.7, 10
"""If the overlap is too small, the triangles are made smaller by this factor, so often. Then the mask stays exact."""
LEVEL = 0.499
"""Just below halfway, so that the borders of two pixels that touch at a corner join."""

Filled = tuple[list[np.ndarray], list[np.ndarray]]
"""Per component its outline followed by its holes' outlines [points, 2], and the offsets of these outlines."""


def polygons(pixels: np.ndarray, simplify_px: float = 0.0) -> list[np.ndarray]:
    """The polygons of a mask's components.

    Without simplification they follow the border halfway between pixel centres, so that rasterising them gives the same
    pixels. With it, corners go in the order of the area that they add or take away (Visvalingam and Whyatt), as long as
    the polygons overlap with the mask by `LEAST_OVERLAP`. So areas are bounded, not distances: a thin spike goes whole.

    Args:
        pixels: bool [height, width].
        simplify_px: size of the details that may go, in pixels.

    Returns:
        One closed ring per component, float [points, 2]: x, y in pixels from the top left corner. The first point does
        not come again at the end.
    """
    exact = outlines(pixels)
    whole = [ring_of(outline) for outline in exact]
    if simplify_px <= 0 or not exact:
        return whole
    truth = rasterised(whole, pixels.shape)
    for attempt in range(ATTEMPTS):
        simple = shapely.coverage_simplify(np.array(exact, object), TRIANGLE_SIDE * simplify_px * FINER**attempt)
        rings = [ring if outline.is_empty else ring_of(outline) for ring, outline in zip(whole, simple, strict=True)]
        drawn = rasterised(rings, pixels.shape)
        for number, (true, part) in enumerate(zip(truth, drawn, strict=True)):
            if overlap([true], [part]) < LEAST_OVERLAP_OF_PART:
                rings[number], drawn[number] = whole[number], true
        if overlap(truth, drawn) >= LEAST_OVERLAP:
            return rings
    return whole


def rasterised(rings: Sequence[np.ndarray], shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """The pixels of each ring, as COCO's run lengths."""
    masks: list[dict[str, Any]] = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *shape)
    return masks


def overlap(some: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> float:
    """Intersection over union of two unions of masks."""
    return float(coco_mask.iou([coco_mask.merge(some)], [coco_mask.merge(others)], [False])[0, 0])


def outlines(pixels: np.ndarray) -> list[shapely.Polygon]:
    """The exact outlines of the components, with holes."""
    padded = np.pad(pixels.astype(np.float64), 1)
    points, offsets = cast(Filled, contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(LEVEL, 2.0))
    found = []
    for outline, begins in zip(points, offsets, strict=True):
        rings = np.split(outline.round(1) - 0.5, begins[1:-1])
        found.append(shapely.Polygon(rings[0], rings[1:]))
    return found


def ring_of(polygon: shapely.Polygon) -> np.ndarray:
    """A polygon with holes as one ring [points, 2]: each hole is joined to what lies left of its leftmost point."""
    outer = shapely.get_coordinates(polygon.exterior)[:-1]
    holes = [leftmost_first(shapely.get_coordinates(hole)[:-1]) for hole in polygon.interiors]
    holes.sort(key=lambda hole: float(hole[0, 0]))
    rings = [outer, *holes]
    cuts = cuts_to_the_left(rings)
    for number in range(len(holes), -1, -1):  # what a hole's cut ends on lies further left, so it comes later here
        rings[number] = with_detours(rings[number], [(*cut, rings[hole]) for hole, cut in cuts[number]])
    return rings[0]


def leftmost_first(ring: np.ndarray) -> np.ndarray:
    return np.roll(ring, -int(ring[:, 0].argmin()), axis=0)


def cuts_to_the_left(rings: Sequence[np.ndarray]) -> dict[int, list[tuple[int, tuple[int, np.ndarray]]]]:
    """Where the horizontal line from each hole's first point to the left meets another ring.

    Args:
        rings: the outline, and the holes by ascending x of their first and leftmost point.

    Returns:
        By the number of the ring that is met: the hole's number, the edge's number in the ring, the point [2].
    """
    cuts: dict[int, list[tuple[int, tuple[int, np.ndarray]]]] = defaultdict(list)
    if len(rings) == 1:
        return cuts
    begin, end = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    firsts = np.cumsum([0, *map(len, rings)])
    for hole in range(1, len(rings)):
        x, y = rings[hole][0]
        before = firsts[hole]  # a ring whose leftmost point lies further right cannot be met
        (x0, y0), (x1, y1) = begin[:before].T, end[:before].T
        crossed = np.flatnonzero((np.minimum(y0, y1) <= y) & (y <= np.maximum(y0, y1)))
        x0, y0, x1, y1 = (values[crossed] for values in (x0, y0, x1, y1))
        share = np.divide(y - y0, y1 - y0, out=np.zeros(len(crossed)), where=y1 != y0)
        met = np.where(y1 == y0, np.maximum(x0, x1), x0 + share * (x1 - x0))
        nearest = int(np.where(met <= x, met, -np.inf).argmax())
        edge = int(crossed[nearest])
        ring = int(np.searchsorted(firsts, edge, side="right")) - 1
        cuts[ring].append((hole, (edge - int(firsts[ring]), np.array([met[nearest], y]))))
    return cuts


def with_detours(ring: np.ndarray, detours: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> np.ndarray:
    """A ring that on its way goes to other rings, around them and back.

    Args:
        ring: [points, 2].
        detours: the edge's number, the point on it where the detour begins and ends, the other ring.
    """
    if not detours:
        return ring
    by_place = sorted(detours, key=lambda detour: (detour[0], float(((detour[1] - ring[detour[0]]) ** 2).sum())))
    pieces, done = [], 0
    for edge, point, other in by_place:
        pieces += [ring[done : edge + 1], point[None], other, other[:1], point[None]]
        done = edge + 1
    return np.concatenate([*pieces, ring[done:]])
