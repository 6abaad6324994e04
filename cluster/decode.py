"""From an image file's bytes to RGB pixels, or to a status that says why not."""

import hashlib
import io

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from schemas.rows import Status

MAX_PIXELS = 178_956_970
"""The largest picture that is decoded: Pillow's own limit, about 13,000 x 13,000 (half a gigabyte of pixels)."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
ImageFile.LOAD_TRUNCATED_IMAGES = False

DECODED_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("seed", pa.int64()),
        pa.field("rgb", pa.large_binary()),
    ]
)
"""Decoded images between two stages: ``rgb`` holds height x width x 3 bytes, ``seed`` is for the diffusion noise."""


class DecodeError(ValueError):
    """The bytes cannot become pixels; ``status`` says which kind of failure it is."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def decode_batch(records: pa.Table) -> pa.Table:
    """Decode the records of `cluster.sources.Record`; failures stay in as rows without pixels."""
    rows = []
    for record in records.to_pylist():
        data = record.pop("data")
        row = record | {"width": None, "height": None, "seed": None, "rgb": None}
        if row["status"] == Status.OK:
            try:
                pixels = decode_image(data)
            except DecodeError as error:
                row |= {"status": error.status, "error": f"{row['uri']}: {error}"}
            else:
                height, width, _ = pixels.shape
                row |= {"width": width, "height": height, "seed": image_seed(data), "rgb": pixels.tobytes()}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=DECODED_SCHEMA)


def decode_image(data: bytes) -> np.ndarray:
    """Decode one image file.

    The EXIF orientation is applied. Grey, palette and CMYK images are converted, 16-bit ones scaled to 8 bits; an
    alpha channel is dropped, as the official release does. Of an animation the first frame counts.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        DecodeError: not an image, damaged, or too large.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.asarray(to_rgb(upright))
    except UnidentifiedImageError:
        raise DecodeError(Status.NOT_AN_IMAGE, "the bytes are no image in a known format") from None
    except Image.DecompressionBombError:
        raise DecodeError(Status.TOO_LARGE, f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise DecodeError(Status.TRUNCATED, f"the image is damaged: {' '.join(str(error).split())[:200]}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes to 8-bit RGB."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def image_seed(data: bytes) -> int:
    """A seed that depends on the file's bytes alone: retries and other batches give the same noise."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1
