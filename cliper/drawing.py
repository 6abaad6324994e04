"""Masks in colours over an image."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy import ndimage

from schemas.colours import class_colours

FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
"""Has Latin, Greek, Cyrillic and Arabic letters."""
SMALLEST_FONT_PX = 11
SEARCHED_PX = 256
"""Places for names are looked for in a mask of about this size."""


def draw_overlay(
    image: Image.Image, labels: Int32[np.ndarray, "height width"], classes: Sequence[str], alpha: float, names: bool
) -> Image.Image:
    """An RGB image with its label map in colours; see `cliper.result.Result.overlay`.

    Raises:
        ValueError: ``alpha`` is not between 0 and 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
    colours = np.array([(0, 0, 0), *map(ImageColor.getrgb, class_colours(len(classes)))], np.uint8)
    coloured = Image.fromarray(colours[labels])
    drawn = Image.composite(Image.blend(image, coloured, alpha), image, Image.fromarray(labels > 0))
    if names:
        pen = ImageDraw.Draw(drawn)
        font = ImageFont.truetype(FONT, max(SMALLEST_FONT_PX, min(drawn.size) // 24))
        for label in np.unique(labels[labels > 0]).tolist():
            write_name(pen, classes[label - 1], middle_of(labels == label), font)
    return drawn


def write_name(pen: ImageDraw.ImageDraw, name: str, at: tuple[int, int], font: ImageFont.FreeTypeFont) -> None:
    """Write a name around a place x, y, or as near to it as the image's borders allow."""
    width, height = pen.im.size
    left, top, right, bottom = pen.textbbox(at, name, font, anchor="mm")
    x = at[0] + max(0, -int(left)) - max(0, int(right) - width)
    y = at[1] + max(0, -int(top)) - max(0, int(bottom) - height)
    pen.text((x, y), name, "white", font, anchor="mm", stroke_width=max(1, int(font.size) // 10), stroke_fill="black")


def middle_of(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int]:
    """x and y of about the pixel of a mask that is farthest from the mask's border."""
    step = max(1, max(mask.shape) // SEARCHED_PX)
    reduced = np.pad(mask[::step, ::step], 1)
    if not reduced.any():  # a few pixels between those that are looked at
        y, x = np.argwhere(mask)[0].tolist()
        return x, y
    y, x = np.unravel_index(ndimage.distance_transform_edt(reduced).argmax(), reduced.shape)
    return (int(x) - 1) * step, (int(y) - 1) * step
