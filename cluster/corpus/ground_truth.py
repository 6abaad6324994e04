"""From an index mask's bytes to the true class of every pixel."""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

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


class TruthError(ValueError):
    """The mask of a image cannot be used; the message says why, in one sentence."""


@dataclass(frozen=True)
class TruthFormat:
    """What the values in masks stand for.

    Attributes:
        lookup: uint16 [`VALUES`]; the class index of every value, `IGNORED` or `OUTSIDE`.
    """

    lookup: np.ndarray


def truth_format(
    values: Sequence[int], ignored: Collection[int] = (), first: int = 0, other: int = OUTSIDE
) -> TruthFormat:
    """The format in which ``values`` stand for the class indices from ``first`` on, in this order.

    Args:
        values: the classes' values.
        ignored: values of pixels that do not count, even if they are among ``values``.
        first: class index of the first value.
        other: what all other values stand for.
    """
    lookup = np.full(VALUES, other, np.uint16)
    lookup[list(values)] = np.arange(first, first + len(values))
    lookup[list(ignored)] = IGNORED
    return TruthFormat(lookup)


def decode_truth(data: bytes, truth_format: TruthFormat, max_pixels: int) -> np.ndarray:
    """The class index of every pixel.

    Args:
        data: a PNG file: a palette image, whose indices count and not its colours, or a grey one of up to 16 bits.
        truth_format: what its values stand for.
        max_pixels: a larger mask is an error.

    Returns:
        uint16 [height, width]; a class index from 0, or `IGNORED`.

    Raises:
        TruthError: no PNG, damaged, too large, in colours, or with a value that stands for no class.
    """
    values = read_values(data, max_pixels)
    truth = truth_format.lookup[values]
    outside = values[truth == OUTSIDE]
    if outside.size:
        raise TruthError(f"the value {outside.min()} stands for no class")
    return truth


def read_values(data: bytes, max_pixels: int) -> np.ndarray:
    """The values as they were written, uint16 [height, width]; raises like `decode_truth`."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > max_pixels:
                raise TruthError(f"{image.width} x {image.height} are more than {max_pixels:,} pixels (--max-pixels)")
            if image.mode not in INDEX_MODES:
                raise TruthError(f"it has colours ({image.mode}) where one value for every pixel is needed")
            values = np.asarray(image).astype(np.uint16)
            bit_depth = data[24]
            return values // GREY_STEP.get(bit_depth, 1) if image.mode == "L" else values
    except TruthError:
        raise
    except UnidentifiedImageError:
        raise TruthError("it is not a PNG image") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise TruthError(f"it is damaged: {' '.join(str(error).split())[:200]}") from error


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
