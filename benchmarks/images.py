"""Images for measuring speed: soft blotches of colour that depend on a number alone."""

import io

import numpy as np
from PIL import Image, ImageFilter


def parse_size(size: str) -> tuple[int, int]:
    """Height and width of ``WIDTHxHEIGHT``, all in pixels.

    Raises:
        ValueError: it is not of this form.
    """
    width, height = map(int, size.split("x"))
    return height, width


def some_image(height: int, width: int, seed: int) -> np.ndarray:
    """Soft blotches of colour: uint8 [height, width, 3]."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.BLUR))


def jpeg_of(image: np.ndarray) -> bytes:
    """An image as the bytes of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()
