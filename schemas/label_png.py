"""Label maps as PNG, as semantic segmentation data sets have them: a pixel's value is its class, 0 is background."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

LARGEST_PALETTE = 256


def label_png(labels: np.ndarray, classes: int) -> bytes:
    """A PNG with the label map's numbers: with a palette, or 16-bit grey for more than 255 classes.

    Args:
        labels: integers [height, width]; 0 is background, else the category id.
        classes: how many there are.
    """
    if classes < LARGEST_PALETTE:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(palette().tobytes())
    else:
        image = Image.fromarray(labels.astype(np.uint16))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def palette() -> np.ndarray:
    """PASCAL VOC's colours, uint8 [256, 3]: the bits of a number, from the lowest, make red, green and blue, and again,
    from their highest bits down."""
    numbers = np.arange(LARGEST_PALETTE)[:, None]
    channel = np.arange(3)
    colours = np.zeros((LARGEST_PALETTE, 3), np.int64)
    for triple in range(3):
        colours |= ((numbers >> (3 * triple + channel)) & 1) << (7 - triple)
    return colours.astype(np.uint8)


def id_to_label(categories: Sequence[Mapping[str, Any]]) -> bytes:
    """``id2label.json`` as Hugging Face's models read it."""
    names = {0: "background"} | {category["id"]: category["name"] for category in categories}
    return json.dumps(names, indent=1, ensure_ascii=False).encode("utf-8")
