"""What a child process makes of an image file's bytes: the pixels that the models read, or all of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cliper.decode import decode_rgb, image_seed
from cliper.ground_truth import pack_truth, read_truth
from cliper.preprocess import InputSpec


@dataclass(frozen=True)
class Decoder:
    """From bytes to the columns that preparing adds to a row. It runs in a process of its own.

    Attributes:
        inputs: what the models read.
        max_pixels: a larger image is a failure.
        lookup: in an evaluation, what masks' values stand for, as the bytes of a
            `cliper.ground_truth.lookup_table`.
    """

    inputs: InputSpec
    max_pixels: int
    lookup: bytes | None

    def __call__(self, data: bytes, mask: bytes | None) -> dict[str, Any]:
        """Raises DecodeError: image or mask cannot be used."""
        image = self.inputs.prepare(decode_rgb(data, self.max_pixels), image_seed(data))
        height, width = image.image_hw
        return {
            "width": width,
            "height": height,
            "seed": image.seed,
            "clip": image.clip.tobytes(),
            "affinity": None if image.affinity is None else image.affinity.tobytes(),
            "ground_truth": None
            if mask is None or self.lookup is None
            else pack_truth(
                read_truth(mask, np.frombuffer(self.lookup, np.uint16), self.max_pixels, data, (height, width))
            ),
        }


def decode_to_bytes(data: bytes) -> dict[str, Any]:
    """`decode_rgb` for a process of its own: ``size`` (width, height) and the pixels ``rgb``."""
    image = decode_rgb(data)
    return {"size": image.size, "rgb": image.tobytes()}
