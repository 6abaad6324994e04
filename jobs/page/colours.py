"""Colours for the classes of a page: those that an image shows together differ for every reader.

Distances are those of the colour space Oklab, in which 0.02 is about the smallest difference that one sees. A colour-
blind reader's view is simulated as by Machado, Oliveira and Fernandes (2009), at full severity.
"""

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from schemas.colours import LMS_TO_RGB, OKLAB_TO_LMS, class_colours, oklab_to_linear, to_hex

LIGHTNESSES = (0.45, 0.52, 0.60, 0.68, 0.76, 0.84, 0.92)
CHROMAS = (0.12, 0.15, 0.18, 0.21, 0.24, 0.27)
HUES = 24
APART = 0.06
"""Added to the distance between classes that no image shows together: they may even share a colour."""
SWEEPS = 10
VIEWS = np.array([
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],  # protanopia
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],  # deuteranopia
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],  # tritanopia
])  # fmt: skip
"""What readers see: matrices for linear RGB, [views, 3, 3]."""


def page_colours(count: int, groups: Iterable[Sequence[int]]) -> list[str]:
    """A colour for every class, as ``#rrggbb``.

    One class after the other gets the colour that is farthest from those of the classes it is seen with, in the view
    that tells them apart worst. Then each is chosen again until nothing changes. Classes in no group keep the colours
    of `schemas.colours.class_colours`.

    Args:
        count: number of classes.
        groups: for every image the classes that it shows, from 0.
    """
    together = np.zeros((count, count), bool)
    for group in groups:
        together[np.ix_(group, group)] = True
    shown = np.flatnonzero(together.diagonal())
    shown = shown[np.argsort(-together[shown].sum(axis=1), kind="stable")]
    palette = candidates()
    distances = distances_between(palette)
    chosen = np.full(count, -1)
    for _ in range(SWEEPS):
        before = chosen.copy()
        for index in shown.tolist():
            others = shown[(shown != index) & (chosen[shown] >= 0)]
            apart = np.where(together[index, others], 0, APART)
            chosen[index] = (distances[chosen[others]] + apart[:, None]).min(axis=0, initial=1).argmax()
        if (chosen == before).all():
            break
    own = class_colours(count)
    return [to_hex(palette[choice]) if choice >= 0 else own[index] for index, choice in enumerate(chosen.tolist())]


def candidates() -> np.ndarray:
    """Colours to choose from that screens can show, linear RGB [colours, 3]."""
    angles = np.arange(HUES) * 2 * np.pi / HUES
    grid = product(LIGHTNESSES, CHROMAS, angles)
    oklab = np.array([(light, chroma * np.cos(hue), chroma * np.sin(hue)) for light, chroma, hue in grid])
    linear = oklab_to_linear(oklab)
    shown: np.ndarray = linear[((linear >= 0) & (linear <= 1)).all(axis=1)]
    return shown


def distances_between(linear: np.ndarray) -> np.ndarray:
    """Distances in Oklab between colours, [colours, colours]: for each pair the smallest of all views.

    Args:
        linear: RGB from 0 to 1, [colours, 3].
    """
    seen = np.clip(linear @ VIEWS.transpose(0, 2, 1), 0, 1)
    oklab = np.cbrt(seen @ np.linalg.inv(LMS_TO_RGB).T) @ np.linalg.inv(OKLAB_TO_LMS).T
    smallest: np.ndarray = np.linalg.norm(oklab[:, :, None] - oklab[:, None], axis=-1).min(axis=0)
    return smallest
