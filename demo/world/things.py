"""Things. Each consists of a few shapes, stands on v = 0 and is about one unit high; v grows downwards."""

from collections.abc import Callable, Iterator

import numpy as np

from demo.world.canvas import box, circle, ellipse, polygon, stroke, union

Rgb = tuple[float, float, float]
Part = tuple[np.ndarray, Rgb]
Draw = Callable[[np.random.Generator, np.ndarray, np.ndarray, Rgb], Iterator[Part]]

DARK: Rgb = (0.12, 0.12, 0.14)
GLASS: Rgb = (0.72, 0.86, 0.93)
WOOD: Rgb = (0.45, 0.29, 0.16)


def darker(colour: Rgb, by: float = 0.7) -> Rgb:
    red, green, blue = colour
    return red * by, green * by, blue * by


def sun(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    angle, radius = np.arctan2(v + 0.5, u), np.hypot(u, v + 0.5)
    yield radius - 0.40 - 0.10 * np.cos(angle * 12), (1.0, 0.74, 0.15)
    yield circle(u, v, 0, -0.5, 0.31), (1.0, 0.93, 0.45)


def moon(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    disc = circle(u, v, 0, -0.5, 0.46)
    yield np.maximum(disc, -circle(u, v, 0.24, -0.58, 0.38)), (0.93, 0.92, 0.80)


def cloud(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    puffs = [(-0.55, -0.30, 0.28), (-0.15, -0.48, 0.40), (0.30, -0.40, 0.34), (0.66, -0.26, 0.24)]
    shape = union(*(circle(u, v, x, y + rng.uniform(-0.05, 0.05), r) for x, y, r in puffs))
    flat = np.maximum(shape, v + 0.08)
    yield flat, (0.86, 0.89, 0.93)
    yield np.maximum(flat + 0.05, v + 0.24), (0.98, 0.98, 0.99)


def tree(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    yield polygon(u, v, (-0.05, -0.5), (0.05, -0.5), (0.08, 0.0), (-0.08, 0.0)), WOOD
    green = (0.07, 0.34 + rng.uniform(-0.05, 0.06), 0.12)
    centres = rng.uniform(-0.20, 0.20, (5, 2))
    yield union(*(circle(u, v, x, y - 0.66, 0.22) for x, y in centres), circle(u, v, 0, -0.66, 0.28)), green
    yield union(*(circle(u, v, x - 0.07, y - 0.74, 0.09) for x, y in centres[:4])), (0.16, green[1] + 0.14, 0.18)


def house(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    yield box(u, v, 0.22, -0.98, 0.34, -0.7), darker(paint, 0.5)
    yield box(u, v, -0.5, -0.58, 0.5, 0.0), paint
    yield polygon(u, v, (0.0, -1.0), (0.62, -0.55), (-0.62, -0.55)), (0.36, 0.20, 0.16)
    yield box(u, v, -0.10, -0.34, 0.10, 0.0), WOOD
    for x in (-0.30, 0.30):
        yield box(u, v, x - 0.11, -0.44, x + 0.11, -0.22), (0.98, 0.93, 0.72)
        yield union(box(u, v, x - 0.012, -0.44, x + 0.012, -0.22), box(u, v, x - 0.11, -0.34, x + 0.11, -0.32)), DARK


def car(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    yield polygon(u, v, (-0.42, -0.88), (0.32, -0.88), (0.62, -0.48), (-0.68, -0.48)), darker(paint, 0.85)
    yield polygon(u, v, (-0.38, -0.80), (-0.06, -0.80), (-0.06, -0.52), (-0.55, -0.52)), GLASS
    yield polygon(u, v, (0.02, -0.80), (0.28, -0.80), (0.50, -0.52), (0.02, -0.52)), GLASS
    yield box(u, v, -1.0, -0.52, 1.0, -0.14) - 0.04, paint
    yield circle(u, v, 0.98, -0.38, 0.07), (1.0, 0.95, 0.6)
    for x in (-0.56, 0.56):
        yield circle(u, v, x, -0.18, 0.21), DARK
        yield circle(u, v, x, -0.18, 0.10), (0.75, 0.75, 0.78)


def boat(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    yield stroke(u, v, 0.0, -1.0, 0.0, -0.2, 0.04), WOOD
    yield polygon(u, v, (0.04, -0.96), (0.48, -0.30), (0.04, -0.30)), (0.97, 0.95, 0.90)
    yield polygon(u, v, (-0.04, -0.84), (-0.04, -0.30), (-0.40, -0.30)), (0.88, 0.86, 0.82)
    yield polygon(u, v, (-0.66, -0.25), (0.66, -0.25), (0.42, 0.0), (-0.46, 0.0)), paint


def fish(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    yield polygon(u, v, (-0.90, -0.86), (-0.48, -0.50), (-0.90, -0.14)), darker(paint, 0.8)
    yield polygon(u, v, (-0.10, -0.92), (0.25, -0.70), (-0.2, -0.70)), darker(paint, 0.8)
    body = ellipse(u, v, 0.05, -0.50, 0.65, 0.34)
    yield body, paint
    yield np.maximum(body, 0.06 - np.abs((u % 0.3) - 0.15)), darker(paint, 0.75)
    yield circle(u, v, 0.44, -0.58, 0.09), (1.0, 1.0, 1.0)
    yield circle(u, v, 0.46, -0.58, 0.05), DARK


def flower(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    yield stroke(u, v, 0.0, -0.6, 0.0, 0.0, 0.07), (0.16, 0.50, 0.14)
    yield ellipse(u, v, 0.16, -0.18, 0.17, 0.07), (0.18, 0.55, 0.16)
    angle, radius = np.arctan2(v + 0.68, u), np.hypot(u, v + 0.68)
    yield radius - 0.25 - 0.09 * np.cos(angle * 6), paint
    yield circle(u, v, 0.0, -0.68, 0.11), (0.98, 0.80, 0.15) if paint[2] > 0.3 else (0.35, 0.18, 0.08)


def balloon(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    for x in (-0.16, 0.16):
        yield stroke(u, v, x * 1.4, -0.36, x * 0.6, -0.15, 0.02), DARK
    yield box(u, v, -0.11, -0.16, 0.11, 0.0), WOOD
    neck = polygon(u, v, (-0.28, -0.48), (0.28, -0.48), (0.12, -0.30), (-0.12, -0.30))
    shape = union(circle(u, v, 0.0, -0.66, 0.34), neck)
    yield shape, paint
    yield np.maximum(shape, np.abs(u) - 0.10), (0.98, 0.95, 0.85)
    yield np.maximum(shape, 0.04 - np.abs(np.abs(u) - 0.26)), darker(paint)


def umbrella(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    yield stroke(u, v, 0.0, -0.95, 0.0, 0.0, 0.05), (0.85, 0.82, 0.78)
    dome = np.maximum(ellipse(u, v, 0.0, -0.52, 0.66, 0.42), v + 0.56 - 0.05 * np.abs(np.sin(u * 9.5)))
    yield dome, paint
    yield np.maximum(dome, 0.10 - np.abs(np.abs(u) - 0.32)), (0.97, 0.96, 0.94)


def fence(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    half = 1.6
    yield union(box(u, v, -half, -0.70, half, -0.56), box(u, v, -half, -0.34, half, -0.20)), (0.60, 0.42, 0.26)
    post = np.abs(((u + 0.2) % 0.4) - 0.2)
    yield np.maximum.reduce([post - 0.085, np.abs(u) - half, -1.0 + post * 0.8 - v, v]), (0.70, 0.50, 0.32)


def tent(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    yield polygon(u, v, (0.0, -0.85), (0.85, 0.0), (-0.85, 0.0)), paint
    yield polygon(u, v, (0.0, -0.85), (0.85, 0.0), (0.25, 0.0)), darker(paint, 0.8)
    yield polygon(u, v, (0.0, -0.60), (0.20, 0.0), (-0.20, 0.0)), DARK


def cactus(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    arms = [(0.0, -0.88, 0.0, 0.0, 0.24), (-0.32, -0.66, -0.32, -0.42, 0.15), (-0.32, -0.40, 0.0, -0.40, 0.15),
            (0.32, -0.78, 0.32, -0.52, 0.15), (0.32, -0.50, 0.0, -0.50, 0.15)]  # fmt: skip
    body = np.maximum(union(*(stroke(u, v, *arm) for arm in arms)), v)
    yield body, (0.22, 0.55, 0.40)
    yield np.maximum(body, 0.02 - np.abs((u % 0.1) - 0.05)), (0.42, 0.70, 0.50)


def snowman(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, paint: Rgb) -> Iterator[Part]:
    white: Rgb = (0.94, 0.96, 1.0)
    for y, radius in ((-0.25, 0.27), (-0.58, 0.20)):
        yield circle(u, v, 0.0, y, radius + 0.015), (0.62, 0.70, 0.82)
        yield circle(u, v, 0.0, y, radius), white
    yield union(box(u, v, -0.15, -1.02, 0.15, -0.78), box(u, v, -0.24, -0.79, 0.24, -0.73)), DARK
    yield box(u, v, -0.17, -0.47, 0.17, -0.40), (0.85, 0.12, 0.15)
    yield polygon(u, v, (0.0, -0.66), (0.24, -0.60), (0.0, -0.57)), (0.98, 0.55, 0.10)
    yield union(circle(u, v, -0.07, -0.67, 0.03), circle(u, v, 0.07, -0.67, 0.03), circle(u, v, 0.0, -0.25, 0.03)), DARK


ALL = (sun, moon, cloud, tree, house, car, boat, fish, flower, balloon, umbrella, fence, tent, cactus, snowman)
DRAW: dict[str, Draw] = {thing.__name__: thing for thing in ALL}
