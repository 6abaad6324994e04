"""Colours that tell the classes of a vocabulary apart."""

import numpy as np

GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
OKLAB_TO_LMS = np.array([
    [1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480],
])  # fmt: skip
LMS_TO_RGB = np.array([
    [4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010],
])  # fmt: skip


def class_colours(count: int) -> list[str]:
    """A colour for every class of a vocabulary, as ``#rrggbb``. It depends only on the class's position.

    Hues are a golden angle apart, so that neighbours differ, in three lightnesses of the colour space Oklab.
    """
    index = np.arange(count)
    hue, lightness = 0.5 + index * GOLDEN_ANGLE, np.array([0.70, 0.58, 0.80])[index % 3]
    oklab = np.stack([lightness, 0.15 * np.cos(hue), 0.15 * np.sin(hue)], axis=1)
    return [to_hex(colour) for colour in np.clip(oklab_to_linear(oklab), 0, 1)]


def oklab_to_linear(oklab: np.ndarray) -> np.ndarray:
    """Linear RGB of colours in Oklab, [..., 3]. What a screen can show is between 0 and 1."""
    linear: np.ndarray = (oklab @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T
    return linear


def to_hex(linear: np.ndarray) -> str:
    """A colour in linear RGB, float [3] from 0 to 1, as ``#rrggbb`` in sRGB."""
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.round(255 * srgb).astype(int).tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"
