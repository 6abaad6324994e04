"""From an index mask's bytes to the true class of every pixel."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cliper.decode import ENDINGS
from schemas.errors import DecodeError
from schemas.rows import Status

IGNORED = 65535
"""In a truth: the pixel does not count."""
PACKED_IGNORED = IGNORED & 255
"""`IGNORED` in one byte."""
OUTSIDE = 65534
"""In a lookup table: the value stands for no class."""
VALUES = 65536
"""How many values a 16-bit mask can have."""
INDEX_MODES = ("1", "L", "P", "I;16", "I")
"""Pillow's names for pixels of a single number; older versions call 16 bits ``I``."""
GREY_STEP = {2: 85, 4: 17}
"""Pillow stretches grey values of so many bits over 0 to 255; this far apart."""


def lookup_table(
    classes: Iterable[int], background: Sequence[int] = (), ignored: Iterable[int] = (), other: int = OUTSIDE
) -> np.ndarray:
    """The label of every value: class c is label c + 1, background is 0.

    Args:
        classes: the classes' values, in their order.
        background: values of the background.
        ignored: values of pixels that do not count, even if they are a class's.
        other: what all other values stand for: `OUTSIDE`, `IGNORED` or the label 0.

    Returns:
        uint16 [`VALUES`].
    """
    lookup = np.full(VALUES, other, np.uint16)
    for label, value in enumerate(classes, start=1):
        lookup[value] = label
    lookup[list(background)] = 0
    lookup[list(ignored)] = IGNORED
    return lookup


def decode_truth(data: bytes, lookup: np.ndarray, max_pixels: int) -> np.ndarray:
    """The label of every pixel.

    Args:
        data: a PNG file: a palette image, whose indices count and not its colours, or a grey one of up to 16 bits.
        lookup: what its values stand for, see `lookup_table`.
        max_pixels: a larger mask is an error.

    Returns:
        uint16 [height, width]; 0 or the label of a class, or `IGNORED`.

    Raises:
        DecodeError: no PNG, damaged, too large, in colours, or with a value that stands for no class.
    """
    values = read_values(data, max_pixels)
    truth = lookup[values]
    outside = values[truth == OUTSIDE]
    if outside.size:
        raise DecodeError(Status.NO_TRUTH, f"the value {outside.min()} stands for no class")
    return truth


def read_values(data: bytes, max_pixels: int) -> np.ndarray:
    """The values as they were written, uint16 [height, width], turned as the file's own EXIF orientation says.

    Raises like `decode_truth`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > max_pixels:
                raise DecodeError(
                    Status.NO_TRUTH,
                    f"{image.width} x {image.height} are more than {max_pixels:,} pixels (--max-pixels)",
                )
            if image.mode not in INDEX_MODES:
                raise DecodeError(
                    Status.NO_TRUTH, f"it has colours ({image.mode}) where one value for every pixel is needed"
                )
            ImageOps.exif_transpose(image, in_place=True)
            values = np.asarray(image).astype(np.uint16)
            bit_depth = data[24]
            return values // GREY_STEP.get(bit_depth, 1) if image.mode == "L" else values
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(Status.NO_TRUTH, "it is not a PNG image") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise DecodeError(Status.NO_TRUTH, f"it is damaged: {' '.join(str(error).split())[:200]}") from error


def read_truth(mask: bytes, lookup: np.ndarray, max_pixels: int, image: bytes, image_hw: tuple[int, int]) -> np.ndarray:
    """The label of every pixel of an image; see `decode_truth`.

    Args:
        mask: a PNG file, over the upright image or over the pixels as the image's file stores them.
        lookup, max_pixels: as for `decode_truth`.
        image: the image's file.
        image_hw: its height and width when it is upright.

    Raises:
        DecodeError: as `decode_truth` does, or the sizes differ.
    """
    truth = decode_truth(mask, lookup, max_pixels)
    if truth.shape != image_hw and truth.shape == image_hw[::-1]:
        truth = turned_like(image, truth)
    if truth.shape != image_hw:
        sizes = (truth.shape[1], truth.shape[0], image_hw[1], image_hw[0])
        raise DecodeError(Status.NO_TRUTH, "it has {} x {} pixels, the image {} x {}".format(*sizes))
    return truth


def turned_like(data: bytes, mask: np.ndarray) -> np.ndarray:
    """A mask over the pixels as a file stores them, turned as the file's EXIF orientation says."""
    turned = Image.fromarray(mask)
    with Image.open(io.BytesIO(data), formats=tuple(ENDINGS)) as image:
        turned.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return np.asarray(ImageOps.exif_transpose(turned))


def pack_truth(truth: np.ndarray) -> bytes:
    """Labels [height, width] as bytes to travel: one byte a pixel where labels are below 255, else two."""
    largest = truth[truth != IGNORED].max(initial=0)
    return truth.astype(np.uint8 if largest < PACKED_IGNORED else np.uint16).tobytes()


def unpack_truth(data: bytes, image_hw: tuple[int, int]) -> np.ndarray:
    """What `pack_truth` packed: uint16 [height, width]."""
    if len(data) > image_hw[0] * image_hw[1]:
        return np.frombuffer(data, np.uint16).reshape(image_hw)
    truth = np.frombuffer(data, np.uint8).astype(np.uint16).reshape(image_hw)
    truth[truth == PACKED_IGNORED] = IGNORED
    return truth
