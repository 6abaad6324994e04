"""Composition of a scene: a landscape from a seed, with its caption and exact label map."""

from dataclasses import dataclass

import numpy as np

from demo.world.canvas import Canvas
from demo.world.names import CATEGORY, NAMES, PAINTED, PAINTS, THINGS
from demo.world.stuff import GROUNDS, SKIES, paint_brick_wall, paint_ground, paint_mountains, paint_sky
from demo.world.things import DRAW

IN_THE_SKY = ("sun", "moon", "cloud", "balloon")
ON_GROUND = {
    "grass": ("tree", "house", "flower", "umbrella", "fence", "tent", "car"),
    "sand": ("umbrella", "cactus", "tent", "fence", "house", "tree"),
    "snow": ("snowman", "house", "tree", "fence", "tent", "car"),
    "road": ("car", "umbrella", "fence", "tree", "house"),
    "sea": ("boat", "fish"),
}
HEIGHT = {
    "sun": 0.26, "moon": 0.24, "cloud": 0.20, "tree": 0.42, "house": 0.36, "car": 0.22, "boat": 0.32, "fish": 0.22,
    "flower": 0.26, "balloon": 0.34, "umbrella": 0.32, "fence": 0.20, "tent": 0.30, "cactus": 0.32, "snowman": 0.34,
}  # fmt: skip
HALF_WIDTH = {"car": 1.05, "fence": 1.6, "boat": 0.7, "fish": 0.9, "tent": 0.85, "cloud": 0.9, "house": 0.62}
"""Half the width of a thing in units of its height; 0.5 if not listed."""
LEAN = {"house": 0.02, "car": 0.04, "fence": 0.03, "tent": 0.03, "cloud": 0.03}
"""Largest angle by which a thing is turned, in radians; 0.1 if not listed."""
PLURAL = {"fish": "fish", "snowman": "snowmen", "cactus": "cactuses"}
LIGHT = {
    "blue sky": (1.0, 1.0, 1.0),
    "grey sky": (0.90, 0.92, 0.95),
    "sunset sky": (1.0, 0.86, 0.76),
    "night sky": (0.55, 0.58, 0.75),
}


@dataclass(frozen=True)
class Scene:
    """A drawn landscape.

    Attributes:
        image: uint8 [height, width, 3].
        labels: uint8 [height, width], values of `demo.world.names.CATEGORY`.
        caption: names everything visible, with the colours of painted things.
    """

    image: np.ndarray
    labels: np.ndarray
    caption: str

    @property
    def categories(self) -> list[int]:
        """Visible categories, ascending."""
        return [int(category) for category in np.unique(self.labels) if category > 0]


def draw(seed: int, height_px: int = 96, width_px: int = 96) -> Scene:
    """Draw the landscape of a seed, from 0. Equal seeds and sizes give equal pixels. Shapes scale with the height."""
    rng = np.random.default_rng(seed)
    canvas = Canvas(height_px, width_px)
    names = rng.choice(THINGS, int(rng.choice([0, 1, 2, 3, 5], p=[0.05, 0.4, 0.27, 0.18, 0.1]))).tolist()
    sky, horizon, grounds = paint_scenery(canvas, rng, names)
    things = {
        name: paint_thing(canvas, rng, name, lowest, highest)
        for name, lowest, highest in place_things(names, sky, horizon, grounds)
    }
    light = np.array(LIGHT[sky], np.float32) * rng.uniform(0.88, 1.08)
    glow = np.isin(canvas.labels, [CATEGORY[name] for name in ("sky", "sun", "moon")])
    rgb = np.where(glow[..., None], canvas.rgb, canvas.rgb * light)
    image = (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
    stuff = {
        "sky": f"a {sky}",
        "mountain": "a mountain",
        "brick wall": "a brick wall",
        **{kind: kind for kind, _ in grounds},
    }
    visible = {NAMES[category - 1] for category in np.unique(canvas.labels)}
    phrases = [[phrase for name, phrase in painted.items() if name in visible] for painted in (things, stuff)]
    return Scene(image, canvas.labels, caption(rng, *phrases))


def caption(rng: np.random.Generator, things: list[str], stuff: list[str]) -> str:
    """Name first the things, then the surroundings, each in random order."""
    rng.shuffle(things)
    rng.shuffle(stuff)
    if not things:
        return f"a photo of {join(stuff)}"
    place = f" {rng.choice(['with', 'and', 'in front of'])} {join(stuff)}" if stuff else ""
    return f"a photo of {join(things)}{place}"


def counted(name: str, colour: str, count: int) -> str:
    """A thing with its number and colour: "an orange car", "three snowmen"."""
    if count > 1:
        return " ".join(filter(None, ["two" if count == 2 else "three", colour, PLURAL.get(name, f"{name}s")]))
    phrase = f"{colour} {name}".strip()
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join(phrases: list[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def paint_scenery(
    canvas: Canvas, rng: np.random.Generator, names: list[str]
) -> tuple[str, float, list[tuple[str, float]]]:
    """Paint sky, mountains, wall and grounds from back to front. The front ground suits the first thing.

    Returns:
        The kind of sky, the y of the horizon, and each ground with the y of its upper edge.
    """
    sky = str(rng.choice(list(SKIES), p=[0.45, 0.2, 0.2, 0.15]))
    horizon = float(rng.uniform(0.35, 0.65))
    paint_sky(canvas, rng, sky, horizon)
    fitting = [ground for ground in GROUNDS if names and names[0] in ON_GROUND[ground]]
    front = str(rng.choice(fitting or list(GROUNDS)))
    if rng.random() < 0.3:
        paint_mountains(canvas, rng, horizon)
    if front != "sea" and rng.random() < 0.2:
        paint_brick_wall(canvas, rng, horizon - rng.uniform(0.12, 0.3), horizon + 0.05)
    grounds = [(front, horizon)]
    if front != "sea" and rng.random() < 0.3:
        beach = front == "sand" and rng.random() < 0.6
        behind = "sea" if beach else str(rng.choice([ground for ground in GROUNDS if ground != front]))
        grounds = [(behind, horizon), (front, horizon + float(rng.uniform(0.12, 0.3)))]
    for kind, top in grounds:
        paint_ground(canvas, rng, kind, top)
    return sky, horizon, grounds


def place_things(
    names: list[str], sky: str, horizon: float, grounds: list[tuple[str, float]]
) -> list[tuple[str, float, float]]:
    """The things that fit into the scenery, distant ones first, each with the lowest and highest y of its foot."""
    placed: dict[str, tuple[str, float, float]] = {}
    for name in names:
        homes = [(ground, top) for ground, top in grounds if name in ON_GROUND[ground]]
        misplaced = {"sun": "night sky", "moon": "blue sky"}.get(name) == sky
        if name in IN_THE_SKY and not misplaced:
            placed[name] = (name, 0.22, max(horizon - 0.05, 0.25))
        elif homes:
            ground, top = homes[-1]
            bottom = 1.0 if (ground, top) == grounds[-1] else grounds[-1][1]
            deep = 0.14 if name == "fish" else 0.04
            placed[name] = (name, min(top + deep, bottom - 0.01), bottom)
    of_sky = [placed[name] for name in IN_THE_SKY if name in placed]
    return of_sky + sorted((thing for thing in placed.values() if thing not in of_sky), key=lambda thing: thing[1])


def paint_thing(canvas: Canvas, rng: np.random.Generator, name: str, lowest: float, highest: float) -> str:
    """Paint one to three copies of a thing at random places and sizes. Nearer copies are larger. Returns a phrase."""
    colour = str(rng.choice(list(PAINTS))) if name in PAINTED else ""
    copies = int(rng.choice([1, 2, 3], p=[0.75, 0.17, 0.08])) if name not in {"sun", "moon"} else 1
    for foot in sorted(rng.uniform(lowest, highest, copies)):
        nearness = 1.0 if name in IN_THE_SKY else 0.8 + 0.9 * (foot - lowest + 0.1)
        height = HEIGHT[name] * nearness * rng.uniform(0.75, 1.5)
        half = HALF_WIDTH.get(name, 0.5) * height
        centre = rng.uniform(min(half, canvas.aspect / 2), max(canvas.aspect - half, canvas.aspect / 2))
        mirror = rng.choice([-1.0, 1.0])
        u, v = mirror * (canvas.x - centre) / height, (canvas.y - foot) / height
        lean = rng.uniform(-1, 1) * LEAN.get(name, 0.1)
        u, v = u * np.cos(lean) - v * np.sin(lean), u * np.sin(lean) + v * np.cos(lean)
        shadow = 1 - 0.16 * np.clip(u + 0.3, 0, 1)[..., None] + 0.03 * canvas.noise(rng, 20)[..., None]
        for distance, fill in DRAW[name](rng, u, v, PAINTS.get(colour, (0.0, 0.0, 0.0))):
            canvas.paint(distance * height, np.asarray(fill, np.float32) * shadow, CATEGORY[name])
    return counted(name, colour, copies)
