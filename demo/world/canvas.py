"""Painting with signed distances.

A shape is the distance of every pixel to the shape's outline, negative inside. Edges are antialiased over one pixel.
"""

import numpy as np
from numpy.typing import ArrayLike


class Canvas:
    """An image and its label map, painted from back to front.

    Coordinates are in image heights: y runs downwards from 0 to 1, x from 0 to width / height.

    Attributes:
        rgb: float32 [height, width, 3], 0 to 1.
        labels: uint8 [height, width], the category painted last; 0 where nothing has been painted.
        x, y: coordinates of the pixel centres [height, width].
        aspect: width / height.
    """

    def __init__(self, height_px: int, width_px: int) -> None:
        self.rgb = np.zeros((height_px, width_px, 3), np.float32)
        self.labels = np.zeros((height_px, width_px), np.uint8)
        self.aspect = width_px / height_px
        self.pixel = 1 / height_px
        rows, columns = np.indices((height_px, width_px), dtype=np.float32)
        self.y, self.x = (rows + 0.5) * self.pixel, (columns + 0.5) * self.pixel

    def paint(self, distance: np.ndarray, colour: ArrayLike, category: int) -> None:
        """Fill a shape of a category from 1. Its signed distance is in image heights [height, width].

        The colour is RGB in 0 to 1: one, or one for each pixel [height, width, 3].
        """
        coverage = np.clip(0.5 - distance / self.pixel, 0, 1)
        self.rgb += coverage[..., None] * (np.asarray(colour, np.float32) - self.rgb)
        self.labels[coverage > 0.5] = category

    def noise(self, rng: np.random.Generator, cells: float, stretch: float = 1.0) -> np.ndarray:
        """Smooth noise in -1 to 1 [height, width].

        There are ``cells`` noise cells per image height. A cell is ``stretch`` times as wide as high.
        """
        v, u = self.y * cells, self.x * cells / stretch
        row, column = np.floor(v).astype(int), np.floor(u).astype(int)
        shape = (int(cells) + 3, int(cells * self.aspect / stretch) + 3)
        lattice = texture_generator(rng).uniform(-1, 1, shape).astype(np.float32)
        fv, fu = (fraction * fraction * (3 - 2 * fraction) for fraction in (v - row, u - column))
        top = lattice[row, column] * (1 - fu) + lattice[row, column + 1] * fu
        bottom = lattice[row + 1, column] * (1 - fu) + lattice[row + 1, column + 1] * fu
        return top * (1 - fv) + bottom * fv

    def grain(self, rng: np.random.Generator) -> np.ndarray:
        """Standard normal noise, one value per pixel [height, width]."""
        return texture_generator(rng).normal(size=self.y.shape).astype(np.float32)


def texture_generator(rng: np.random.Generator) -> np.random.Generator:
    """A separate generator for a texture.

    A texture draws more numbers in a larger image. With a shared generator the rest of the scene would change with the
    size.
    """
    return np.random.default_rng(rng.integers(2**63))


def circle(u: np.ndarray, v: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(u - x, v - y) - radius


def ellipse(u: np.ndarray, v: np.ndarray, x: float, y: float, half_w: float, half_h: float) -> np.ndarray:
    """An approximate distance, accurate near the outline."""
    return (np.hypot((u - x) / half_w, (v - y) / half_h) - 1) * min(half_w, half_h)


def box(u: np.ndarray, v: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.maximum(np.maximum(left - u, u - right), np.maximum(top - v, v - bottom))


def polygon(u: np.ndarray, v: np.ndarray, *points: tuple[float, float]) -> np.ndarray:
    """A convex polygon. The corners are in clockwise order on the screen."""
    distance = np.full(u.shape, -np.inf, np.float32)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        length = float(np.hypot(x1 - x0, y1 - y0))
        distance = np.maximum(distance, ((u - x0) * (y1 - y0) - (v - y0) * (x1 - x0)) / length)
    return distance


def stroke(u: np.ndarray, v: np.ndarray, x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    """A line with round ends."""
    along = np.clip(((u - x0) * (x1 - x0) + (v - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
    return np.hypot(u - x0 - along * (x1 - x0), v - y0 - along * (y1 - y0)) - width / 2


def union(*distances: np.ndarray) -> np.ndarray:
    return np.minimum.reduce(distances)
