"""Label maps as PNG, as in semantic segmentation data sets: a pixel's value is its class, 0 is background."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

PALETTE_SIZE = 256


def label_png(labels: np.ndarray, classes: int) -> bytes:
    """Encode a label map: with a palette, or as 16-bit grey for more than 255 classes.

    Args:
        labels: integers [height, width], 0 for background, else the category id.
        classes: number of classes in the vocabulary.
    """
    if classes < PALETTE_SIZE:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(palette().tobytes())
    else:
        image = Image.fromarray(labels.astype(np.uint16))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def palette() -> np.ndarray:
    """PASCAL VOC's colours, uint8 [256, 3].

    Bits 0, 3 and 6 of a label are the three highest bits of red, bits 1, 4 and 7 those of green, bits 2 and 5 of blue.
    """
    bits = np.unpackbits(np.arange(PALETTE_SIZE, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (np.pad(bits, ((0, 0), (0, 1))).reshape(-1, 3, 3) << np.array([[7], [6], [5]], np.uint8)).sum(1, np.uint8)


def id_to_label(categories: Sequence[Mapping[str, Any]]) -> bytes:
    """``id2label.json`` in the form that Hugging Face's models use."""
    names = {0: "background"} | {category["id"]: category["name"] for category in categories}
    return json.dumps(names, indent=1, ensure_ascii=False).encode("utf-8")
