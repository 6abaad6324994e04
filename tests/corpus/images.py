"""Image files that are odd or broken."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from schemas.rows import Status
from tests.support.corpora import jpeg

IMAGE = Image.open(io.BytesIO(jpeg(1, (60, 90))))


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def animation(image_format: str) -> bytes:
    frames = [IMAGE.rotate(angle) for angle in (0, 90, 180)]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:])


def with_exif(exif: bytes) -> bytes:
    return encoded(IMAGE, "JPEG", exif=exif)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(IMAGE, "JPEG", exif=exif)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header announces a size and whose pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def gif_with_large_frame(width: int, height: int) -> bytes:
    """A GIF of 10 x 10 pixels whose only frame is larger."""
    return b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)


def odd_images() -> dict[str, tuple[bytes, Status]]:
    """File name to its bytes and the status of its row."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    wide = Image.fromarray(np.arange(60 * 90, dtype=np.uint16).reshape(60, 90) * 12)
    bmp = encoded(IMAGE, "BMP")
    palette = IMAGE.quantize(16)
    ok, cut = Status.OK, Status.TRUNCATED
    return {
        "good.jpg": (jpeg(1), ok),
        "empty.jpg": (b"", Status.EMPTY),
        "one-byte.jpg": (b"\xff", Status.NOT_AN_IMAGE),
        "zeros.jpg": (bytes(1000), Status.NOT_AN_IMAGE),
        "cut.jpg": (encoded(noise, "JPEG")[:2000], cut),
        "cut.png": (encoded(noise, "PNG")[:2000], cut),
        "cut.webp": (encoded(noise, "WEBP")[:2000], cut),
        "cut.gif": (encoded(noise, "GIF")[:2000], cut),
        "cut.tif": (encoded(noise, "TIFF")[:2000], cut),
        "cut.bmp": (encoded(noise, "BMP")[:2000], cut),
        "header-only.png": (b"\x89PNG\r\n\x1a\n", Status.NOT_AN_IMAGE),
        "no-pixels.png": (png_of_size(20, 20), cut),
        "bomb.png": (png_of_size(30_000, 30_000), Status.TOO_LARGE),
        "bomb.gif": (gif_with_large_frame(50_000, 60_000), Status.TOO_LARGE),
        "bomb.bmp": (bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:], Status.TOO_LARGE),
        "png-inside.jpg": (encoded(IMAGE, "PNG"), ok),
        "jpeg-inside.png": (jpeg(2), ok),
        "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", Status.NOT_AN_IMAGE),
        "drawing.jpg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', Status.NOT_AN_IMAGE),
        "postscript.jpg": (encoded(IMAGE, "EPS"), Status.NOT_AN_IMAGE),
        "icon.png": (encoded(IMAGE, "ICO"), Status.NOT_AN_IMAGE),
        "archive.jpg": (b"PK\x03\x04" + bytes(100), Status.NOT_AN_IMAGE),
        "cmyk.jpg": (encoded(IMAGE.convert("CMYK"), "JPEG"), ok),
        "grey.jpg": (encoded(IMAGE.convert("L"), "JPEG"), ok),
        "progressive.jpg": (encoded(IMAGE, "JPEG", progressive=True), ok),
        "rubbish-behind.jpg": (jpeg(1) + b"rubbish" * 100, ok),
        "16-bit.png": (encoded(wide, "PNG"), ok),
        "bits.png": (encoded(IMAGE.convert("1"), "PNG"), ok),
        "palette.png": (encoded(palette, "PNG"), ok),
        "transparent-palette.png": (encoded(palette, "PNG", transparency=0), ok),
        "alpha.png": (encoded(IMAGE.convert("RGBA"), "PNG"), ok),
        "grey-alpha.png": (encoded(IMAGE.convert("LA"), "PNG"), ok),
        "animated.gif": (animation("GIF"), ok),
        "animated.webp": (animation("WEBP"), ok),
        "float.tif": (encoded(IMAGE.convert("F"), "TIFF"), ok),
        "negative-float.tif": (encoded(Image.fromarray(np.full((9, 9), -1, np.float32)), "TIFF"), Status.NOT_AN_IMAGE),
        "nan.tif": (encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"), Status.NOT_AN_IMAGE),
        "32-bit.tif": (encoded(Image.fromarray(np.full((9, 9), 10**6, np.int32)), "TIFF"), Status.NOT_AN_IMAGE),
        "good.avif": (encoded(IMAGE, "AVIF"), ok),
        "good.jp2": (encoded(IMAGE, "JPEG2000"), ok),
        "good.ppm": (encoded(noise, "PPM"), ok),
        "good.mpo": (encoded(IMAGE, "MPO", save_all=True, append_images=[IMAGE]), ok),
        "camera.JFIF": (jpeg(1), ok),
        "_MG_1234.JPG": (jpeg(1), ok),
        "broken-exif.jpg": (with_exif(b"Exif\0\0II*\0\xff\xff\xff\xff rubbish"), ok),
        "exif-rubbish.jpg": (with_exif(b"Exif\0\0" + bytes(range(200))), ok),
        **{f"orientation-{number}.jpg": (oriented(number), ok) for number in range(1, 9)},
        "orientation-99.jpg": (oriented(99), ok),
        "1x1.png": (encoded(Image.new("RGB", (1, 1), "red"), "PNG"), ok),
        "1x20000.png": (encoded(Image.new("RGB", (1, 20_000), "red"), "PNG"), ok),
        "20000x1.png": (encoded(Image.new("RGB", (20_000, 1), "red"), "PNG"), ok),
        "name with spaces, comma & ünïcode.jpg": (jpeg(3), ok),
    }
