"""Skies, mountains, walls and grounds: the background of a scene."""

import numpy as np

from demo.world.canvas import Canvas, box
from demo.world.names import CATEGORY

SKIES = {
    "blue sky": ((0.25, 0.52, 0.90), (0.70, 0.86, 0.98)),
    "grey sky": ((0.48, 0.52, 0.58), (0.76, 0.78, 0.80)),
    "sunset sky": ((0.42, 0.25, 0.50), (0.99, 0.62, 0.32)),
    "night sky": ((0.02, 0.03, 0.12), (0.12, 0.14, 0.34)),
}


def paint_sky(canvas: Canvas, rng: np.random.Generator, kind: str, horizon: float) -> None:
    """Fill the canvas with a gradient that ends at the horizon. A night sky has stars."""
    top, bottom = (np.array(colour, np.float32) for colour in SKIES[kind])
    share = np.clip(canvas.y / max(horizon, 0.2), 0, 1)[..., None] ** 1.2
    colour = top + (bottom - top) * share + 0.02 * canvas.noise(rng, 4, stretch=4)[..., None]
    if kind == "night sky":
        colour = colour + 0.8 * (canvas.grain(rng) > 2.65)[..., None]
    canvas.paint(np.full_like(canvas.y, -1), colour, CATEGORY["sky"])


def paint_mountains(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    """Paint one or two rocky ridges with snow-covered tops on the horizon."""
    for depth in range(int(rng.integers(1, 3))):
        line = np.full_like(canvas.y, horizon + 0.02)
        for _ in range(int(rng.integers(2, 4))):
            peak, steep = rng.uniform(0, canvas.aspect), rng.uniform(0.7, 1.5)
            height = rng.uniform(0.16, 0.34) * (1 - 0.3 * depth)
            line = np.minimum(line, horizon - height + np.abs(canvas.x - peak) * steep)
        rough = canvas.noise(rng, 24)
        line = line + 0.012 * rough
        slope = canvas.noise(rng, 14, stretch=0.4)
        rock = np.array([0.42, 0.38, 0.42]) + 0.07 * depth + 0.10 * slope[..., None]
        snow_line = line.min() + 0.09 + 0.03 * canvas.noise(rng, 18)
        colour = np.where((canvas.y < snow_line)[..., None], 0.93 + 0.05 * slope[..., None], rock)
        canvas.paint(line - canvas.y, colour, CATEGORY["mountain"])


def paint_ground(canvas: Canvas, rng: np.random.Generator, kind: str, top: float) -> None:
    """Paint a textured ground from ``top`` to the lower edge. Only sea and road have a straight upper edge."""
    near = np.clip((canvas.y - top) / max(1 - top, 0.1), 0, 1)
    wave = 0.0 if kind in {"sea", "road"} else 0.02
    edge = top + wave * canvas.noise(rng, 3, stretch=2)
    canvas.paint(edge - canvas.y, GROUNDS[kind](canvas, rng, near), CATEGORY[kind])


def shade(base: tuple[float, float, float], amount: np.ndarray) -> np.ndarray:
    return np.array(base, np.float32) + amount[..., None]


def grass(canvas: Canvas, rng: np.random.Generator, near: np.ndarray) -> np.ndarray:
    blades = canvas.noise(rng, 60, stretch=0.35) * (0.05 + 0.08 * near)
    return shade((0.24, 0.58, 0.18), blades - 0.08 * near) * np.array([0.9, 1.0, 0.9], np.float32)


def sand(canvas: Canvas, rng: np.random.Generator, near: np.ndarray) -> np.ndarray:
    ripples = np.sin((canvas.y * 70 + 3 * canvas.noise(rng, 5, stretch=3)) * (1.4 - 0.7 * near))
    return shade((0.90, 0.76, 0.48), 0.035 * ripples + 0.03 * canvas.grain(rng))


def snow(canvas: Canvas, rng: np.random.Generator, near: np.ndarray) -> np.ndarray:
    drifts = canvas.noise(rng, 5, stretch=3)
    return shade((0.92, 0.94, 0.98), 0.045 * drifts - 0.02 * near) * np.array([0.97, 0.985, 1.0], np.float32)


def sea(canvas: Canvas, rng: np.random.Generator, near: np.ndarray) -> np.ndarray:
    waves = np.sin((canvas.y + 0.015 * canvas.noise(rng, 9, stretch=3)) * (170 - 90 * near))
    foam = np.clip(canvas.noise(rng, 40, stretch=4) - 0.62, 0, 1)
    return shade((0.05, 0.34, 0.52), 0.06 * waves - 0.06 * near + 0.9 * foam)


def road(canvas: Canvas, rng: np.random.Generator, near: np.ndarray) -> np.ndarray:
    asphalt = shade((0.27, 0.27, 0.29), 0.025 * canvas.grain(rng))
    dashes = (np.abs(near - 0.5) < 0.05) & (np.sin(canvas.x * 16 + rng.uniform(0, 6)) > 0)
    return np.where(dashes[..., None], 0.93, asphalt)


GROUNDS = {"grass": grass, "sand": sand, "snow": snow, "sea": sea, "road": road}


def paint_brick_wall(canvas: Canvas, rng: np.random.Generator, top: float, bottom: float) -> None:
    """Paint a wall in running bond over a part of the width."""
    width = rng.uniform(0.45, 1.1) * canvas.aspect
    left = rng.uniform(-0.1, max(canvas.aspect - width + 0.1, 0))
    brick = rng.uniform(0.045, 0.07)
    course = np.floor(canvas.y / brick)
    along = canvas.x / (2.2 * brick) + 0.5 * (course % 2)
    mortar = (canvas.y / brick - course < 0.16) | (along - np.floor(along) < 0.08)
    tone = rng.uniform(-0.08, 0.08, (64, 64))[course.astype(int) % 64, np.floor(along).astype(int) % 64]
    colour = np.where(mortar[..., None], (0.78, 0.74, 0.70), shade((0.62, 0.27, 0.20), tone))
    canvas.paint(box(canvas.x, canvas.y, left, top, left + width, bottom), colour, CATEGORY["brick wall"])
