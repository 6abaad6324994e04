"""From an image file's bytes to RGB pixels, or to an error that says why not; without torch."""

import hashlib
import io
import warnings
from itertools import chain

import numpy as np
import pi_heif
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from schemas.errors import DecodeError
from schemas.rows import Status

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `decode_rgb` has a limit of its own
ImageFile.LOAD_TRUNCATED_IMAGES = False

pi_heif.register_heif_opener()

ENDINGS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's names for what is decoded, and the endings of files' names. Other formats are left out because of what they
would do with hostile bytes: some start another program (EPS), some hold images of another size than they announce
(ICO)."""
IMAGE_ENDINGS = tuple(chain.from_iterable(ENDINGS.values()))
MAX_PIXELS = 178_956_970
"""Pixels of the largest image: Pillow's own limit, about 13,000 x 13,000."""


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image file.

    The EXIF orientation is applied. Grey, palette and CMYK images are converted, 16-bit ones scaled to 8 bits; an
    alpha channel is dropped, as the official release does. Of an animation the first frame counts.

    Returns:
        An image of mode RGB.

    Raises:
        DecodeError: not an image, damaged, or too large.
    """
    # Pillow raises at twice this number, also where a format hides its size at first.
    Image.MAX_IMAGE_PIXELS = max_pixels // 2 + 1
    try:
        with Image.open(io.BytesIO(data), formats=tuple(ENDINGS)) as image:
            if image.width * image.height > max_pixels:
                raise DecodeError(
                    Status.TOO_LARGE,
                    f"{image.width} x {image.height} are more than {max_pixels:,} pixels (--max-pixels)",
                )
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except UnidentifiedImageError:
        raise DecodeError(Status.NOT_AN_IMAGE, "the bytes are no image in a known format") from None
    except DecodeError:
        raise
    except Image.DecompressionBombError:
        raise DecodeError(Status.TOO_LARGE, f"it has more than {max_pixels:,} pixels (--max-pixels)") from None
    except MemoryError:
        raise DecodeError(Status.OUT_OF_MEMORY, "the image does not fit into memory (--decode-memory-mb)") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise DecodeError(Status.TRUNCATED, f"the image is damaged: {' '.join(str(error).split())[:200]}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes to 8-bit RGB; an image that is RGB already is not copied."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values as uint8, rounded: integers count as 16 bits, floats as what their range fits, 1, 255 or 65535.

    Raises:
        DecodeError: values beyond that say nothing about what is black and what is white.
    """
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:
        raise DecodeError(
            Status.NOT_AN_IMAGE, f"its pixels have values from {low:g} to {high:g}: convert it to 8 or 16 bits"
        )
    white = 65535 if values.dtype.kind in "iu" else next(white for white in (1, 255, 65535) if high <= white)
    scaled = np.empty(values.shape, np.uint8)
    for row, target in zip(values, scaled, strict=True):  # one by one, to spare memory
        target[:] = (row.astype(np.float64) * (255 / white) + 0.5).clip(0, 255)
    return scaled


def image_seed(data: bytes) -> int:
    """A seed that depends on the file's bytes alone: retries and other batches give the same noise."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1
