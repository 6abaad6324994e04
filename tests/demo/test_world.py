"""Drawn scenes are reproducible, exactly labelled and completely captioned, and every name occurs often enough."""

import re
from collections import Counter

import numpy as np
import pytest

from demo.world.canvas import Canvas, box, circle, polygon
from demo.world.names import CATEGORY, NAMES, PAINTED, PAINTS, STUFF, THINGS
from demo.world.scene import PLURAL, Scene, draw
from demo.world.things import DRAW

SCENES = 300


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw(seed, 48, 64) for seed in range(SCENES)]


def test_at_least_twenty_names_each_with_a_drawing() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 20
    assert DRAW.keys() == set(THINGS)
    assert set(THINGS) >= PAINTED


def test_a_seed_gives_one_scene() -> None:
    first, again, other = draw(3), draw(3), draw(4)
    assert np.array_equal(first.image, again.image)
    assert first.caption == again.caption
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("size", [(16, 16), (96, 128), (128, 96)])
def test_sizes(size: tuple[int, int]) -> None:
    scene = draw(0, *size)
    assert scene.image.shape == (*size, 3)
    assert scene.labels.shape == size
    assert scene.image.dtype == scene.labels.dtype == np.uint8


def test_the_same_scene_at_another_size_has_the_same_shares() -> None:
    small, large = draw(7, 96, 96), draw(7, 192, 192)
    for name in NAMES:
        shares = [(scene.labels == CATEGORY[name]).mean() for scene in (small, large)]
        assert abs(shares[0] - shares[1]) < 0.02, name


def test_every_pixel_has_a_name(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.labels.min() >= 1
        assert scene.labels.max() <= len(NAMES)


def test_captions_name_what_can_be_seen_and_nothing_else(scenes: list[Scene]) -> None:
    for scene in scenes:
        spellings = {name: "|".join({name, f"{name}s", PLURAL.get(name, name)}) for name in NAMES}
        named = {name for name, forms in spellings.items() if re.search(rf"\b({forms})\b", scene.caption)}
        assert named == {NAMES[category - 1] for category in scene.categories}, scene.caption


def test_painted_things_have_their_colour_in_the_caption(scenes: list[Scene]) -> None:
    for scene in scenes:
        for name in PAINTED & {NAMES[category - 1] for category in scene.categories}:
            assert any(f"{colour} {name}" in scene.caption for colour in PAINTS), scene.caption


def test_everything_occurs_and_things_are_balanced(scenes: list[Scene]) -> None:
    seen = Counter(NAMES[category - 1] for scene in scenes for category in scene.categories)
    assert all(seen[name] >= SCENES // 40 for name in THINGS), seen
    assert all(seen[name] >= SCENES // 15 for name in STUFF), seen


class TestCanvas:
    def test_areas(self) -> None:
        canvas = Canvas(200, 200)
        canvas.paint(circle(canvas.x, canvas.y, 0.5, 0.5, 0.3), (1.0, 0.0, 0.0), 1)
        assert (canvas.labels == 1).mean() == pytest.approx(np.pi * 0.09, rel=0.01)
        canvas.paint(box(canvas.x, canvas.y, 0.1, 0.1, 0.4, 0.2), (0.0, 1.0, 0.0), 2)
        assert (canvas.labels == 2).mean() == pytest.approx(0.03, rel=0.05)
        canvas.paint(polygon(canvas.x, canvas.y, (0.5, 0.2), (0.9, 0.9), (0.1, 0.9)), (0.0, 0.0, 1.0), 3)
        assert (canvas.labels == 3).mean() == pytest.approx(0.28, rel=0.02)

    def test_edges_are_antialiased(self) -> None:
        canvas = Canvas(10, 10)
        canvas.paint(0.55 - canvas.y, (1.0, 1.0, 1.0), 1)
        assert canvas.rgb[:, 0, 0] == pytest.approx([0] * 5 + [0.5] + [1] * 4, abs=1e-5)

    def test_noise_is_smooth_and_bounded(self) -> None:
        noise = Canvas(100, 150).noise(np.random.default_rng(0), 5)
        assert np.abs(noise).max() <= 1
        assert np.abs(np.diff(noise, axis=0)).max() < 0.2
