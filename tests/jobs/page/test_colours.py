"""Classes that an image shows together have colours that every reader tells apart, measured by another simulation."""

from collections.abc import Sequence

import numpy as np
import pytest
from daltonlens.simulate import Deficiency, Simulator, Simulator_Brettel1997, Simulator_Machado2009

from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.page.colours import page_colours
from schemas.colours import class_colours

LINEAR_TO_LMS = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
LMS_TO_OKLAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip
"""Ottosson's matrices for the way that the page's module does not go."""


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB, uint8 [..., 3], in Oklab."""
    encoded = rgb / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    found: np.ndarray = np.cbrt(linear @ LINEAR_TO_LMS.T) @ LMS_TO_OKLAB.T
    return found


def closest(colours: Sequence[str], simulator: Simulator | None = None) -> float:
    """The smallest distance in Oklab between two of the colours for any reader."""
    rgb = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours], np.uint8)[None]
    views = [rgb]
    if simulator is not None:
        views += [simulator.simulate_cvd(rgb, deficiency, severity=1) for deficiency in Deficiency]
    distances = [np.linalg.norm(oklab(view[0])[:, None] - oklab(view[0]), axis=-1) for view in views]
    return float(min(distance[np.triu_indices(len(colours), 1)].min() for distance in distances))


def drawn_groups() -> list[list[int]]:
    """The classes of 60 drawn images, up to nine in one."""
    return [[category - 1 for category in draw(seed, 48, 64).categories] for seed in range(60)]


def groups_of_a_large_vocabulary() -> list[list[int]]:
    """Eight of 171 classes in each of 60 images; some classes are frequent."""
    rng = np.random.default_rng(1)
    frequency = 1 / np.arange(1, 172)
    return [rng.choice(171, 8, replace=False, p=frequency / frequency.sum()).tolist() for _ in range(60)]


@pytest.mark.parametrize(
    "simulator", [Simulator_Brettel1997(), Simulator_Machado2009()], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize(
    ("count", "groups"), [(len(NAMES), drawn_groups()), (171, groups_of_a_large_vocabulary())], ids=["drawn", "large"]
)
def test_classes_of_one_image_differ_for_colour_blind_readers(
    count: int, groups: list[list[int]], simulator: Simulator
) -> None:
    """0.02 is about the smallest difference that one sees; the colours of a vocabulary go below it."""
    colours, plain = page_colours(count, groups), class_colours(count)
    several = [group for group in groups if len(group) > 1]
    assert min(closest([colours[index] for index in group], simulator) for group in several) > 0.035
    assert min(closest([plain[index] for index in group], simulator) for group in several) < 0.02


def test_a_class_has_one_colour_of_its_own_where_that_is_possible() -> None:
    colours = page_colours(len(NAMES), drawn_groups())
    assert len(set(colours)) == len(NAMES)
    assert closest(colours) > 0.05
    assert colours == page_colours(len(NAMES), drawn_groups())


def test_classes_on_no_image_keep_the_colours_of_the_vocabulary() -> None:
    assert page_colours(5, [])[2] == class_colours(5)[2]
    assert page_colours(3, [[0, 1]])[2] == class_colours(3)[2]
    assert closest(page_colours(2, [[0, 1]])) > 0.4
