"""What a child process makes of an image file's bytes: the pixels that the models read, or all of them."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from cliper.decode import ENDINGS, decode_rgb, image_seed
from cliper.preprocess import InputSpec
from cluster.corpus.ground_truth import decode_truth, pack_truth
from schemas.errors import DecodeError
from schemas.rows import Status


@dataclass(frozen=True)
class Decoder:
    """From bytes to the columns that preparing adds to a row. It runs in a process of its own.

    Attributes:
        inputs: what the models read.
        max_pixels: a larger image is a failure.
        lookup: in an evaluation, what masks' values stand for, as the bytes of a
            `cluster.corpus.ground_truth.lookup_table`.
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
            else self.pack(mask, self.lookup, data, (height, width)),
        }

    def pack(self, mask: bytes, lookup: bytes, data: bytes, image_hw: tuple[int, int]) -> bytes:
        truth = decode_truth(mask, np.frombuffer(lookup, np.uint16), self.max_pixels)
        if truth.shape != image_hw and truth.shape == image_hw[::-1]:
            truth = turned_like(data, truth)
        if truth.shape != image_hw:
            sizes = (truth.shape[1], truth.shape[0], image_hw[1], image_hw[0])
            raise DecodeError(Status.NO_TRUTH, "it has {} x {} pixels, the image {} x {}".format(*sizes))
        return pack_truth(truth)


def turned_like(data: bytes, mask: np.ndarray) -> np.ndarray:
    """A mask over the pixels as a file stores them, turned as the file's EXIF orientation says."""
    turned = Image.fromarray(mask)
    with Image.open(io.BytesIO(data), formats=tuple(ENDINGS)) as image:
        turned.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return np.asarray(ImageOps.exif_transpose(turned))


def decode_to_bytes(data: bytes) -> dict[str, Any]:
    """`decode_rgb` for a process of its own: ``size`` (width, height) and the pixels ``rgb``."""
    image = decode_rgb(data)
    return {"size": image.size, "rgb": image.tobytes()}
