"""Every kind of image file becomes RGB or a status."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliper.decode import image_seed
from cliper.ground_truth import lookup_table, unpack_truth
from cliper.preprocess import InputSpec
from cluster.corpus.decode import Decoder
from cluster.corpus.limits import Limits
from cluster.corpus.prepare import Preparer
from cluster.corpus.readers import Record
from schemas.errors import DecodeError
from schemas.rows import Status
from tests.support.corpora import decode_image

HEIGHT, WIDTH = 6, 9
RAMP = np.linspace(0, 255, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(RAMP)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_pixels(image_format: str) -> None:
    assert np.array_equal(decode_image(encode(rgb(), image_format)), RAMP)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("JPEG", {"quality": 95}), ("JPEG", {"progressive": True, "quality": 95}), ("WEBP", {"quality": 95}), ("GIF", {})],
)
def test_lossy_formats_come_close(image_format: str, options: dict[str, Any]) -> None:
    decoded = decode_image(encode(rgb(), image_format, **options))
    assert decoded.shape == RAMP.shape
    assert np.abs(decoded.astype(int) - RAMP).mean() < 30


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: encode(rgb().convert("L"), "PNG"), np.asarray(rgb().convert("L").convert("RGB"))),
        (lambda: encode(rgb().convert("LA"), "PNG"), np.asarray(rgb().convert("L").convert("RGB"))),
        (lambda: encode(rgb().convert("1"), "PNG"), np.asarray(rgb().convert("1").convert("RGB"))),
        (lambda: encode(rgb().convert("P"), "PNG"), np.asarray(rgb().convert("P").convert("RGB"))),
        (lambda: encode(rgb().convert("P"), "PNG", transparency=0), np.asarray(rgb().convert("P").convert("RGB"))),
        (lambda: encode(rgb().convert("RGBA"), "PNG"), RAMP),
        (lambda: encode(rgb().convert("CMYK"), "TIFF"), np.asarray(rgb().convert("CMYK").convert("RGB"))),
    ],
    ids=["grey", "grey-alpha", "bilevel", "palette", "palette-transparency", "alpha", "cmyk"],
)
def test_modes_become_rgb(make: Callable[[], bytes], expected: np.ndarray) -> None:
    assert np.array_equal(decode_image(make()), expected)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    wide = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    assert decode_image(encode(wide, "PNG"))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_count_as_what_their_range_fits(white: float) -> None:
    grey = Image.fromarray(np.array([[0, 0.5, 1]], np.float32) * white)
    assert decode_image(encode(grey, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


def test_photographs_of_telephones() -> None:
    """HEIF; `pi_heif` only reads, so the file is one that was written before."""
    decoded = decode_image((Path(__file__).parent / "grey_16x16.heic").read_bytes())
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - 128).max() <= 3


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels of a file with this EXIF orientation that shows ``upright``."""
    return np.ascontiguousarray({
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation])  # fmt: skip


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    data = encode(Image.fromarray(as_stored(RAMP, orientation)), "PNG", exif=exif_of(orientation))
    assert np.array_equal(decode_image(data), RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["upright", "with an orientation of its own", "as the image is stored"])
def test_masks_lie_on_the_image_as_it_is_shown(kind: str, orientation: int) -> None:
    """A mask of the size of the stored pixels is turned with them. Where both sizes are equal, it is taken as it is."""
    truth = np.arange(RAMP.shape[0] * RAMP.shape[1], dtype=np.uint8).reshape(RAMP.shape[:2]) % 5
    exif = exif_of(orientation)
    image = encode(Image.fromarray(as_stored(RAMP, orientation)), "PNG", exif=exif)
    stored = Image.fromarray(truth if kind == "upright" else as_stored(truth, orientation))
    mask = encode(stored, "PNG", **({"exif": exif} if kind == "with an orientation of its own" else {}))
    decoder = Decoder(InputSpec(16, 16), 10**6, lookup_table(range(1, 5), background=[0]).tobytes())
    found = unpack_truth(decoder(image, mask)["ground_truth"], RAMP.shape[:2])
    if kind == "as the image is stored" and orientation in (2, 3, 4):
        assert np.array_equal(found, as_stored(truth, orientation))
    else:
        assert np.array_equal(found, truth)


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"<html><body>404</body></html>", Status.NOT_AN_IMAGE),
        (b"\x89PNG\r\n\x1a\n", Status.NOT_AN_IMAGE),
        (encode(rgb().resize((300, 300)), "JPEG")[:-800], Status.TRUNCATED),
        (encode(rgb().resize((300, 300)), "PNG")[:-800], Status.TRUNCATED),
        (encode(rgb().resize((300, 300)), "WEBP", lossless=True)[:-200], Status.TRUNCATED),
        (encode(Image.new("1", (30_000, 30_000)), "PNG"), Status.TOO_LARGE),
    ],
    ids=["html", "png-signature", "cut-jpeg", "cut-png", "cut-webp", "bomb"],
)
def test_bad_bytes_have_a_status(data: bytes, status: Status) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_image(data)
    assert caught.value.status == status


def test_limits_are_what_was_asked_for() -> None:
    data = encode(rgb().resize((30, 20)), "PNG")
    assert decode_image(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(DecodeError, match=r"30 x 20 are more than 599 pixels \(--max-pixels\)"):
        decode_image(data, max_pixels=599)


@pytest.mark.parametrize(("kind", "side"), [("PNG", 4000), ("JPEG2000", 1500), ("AVIF", 4000)])
def test_slow_images_are_given_up_and_others_are_not(kind: str, side: int) -> None:
    """The decoders of JPEG 2000 and AVIF never return to Python in between."""
    grain = 4 if kind == "AVIF" else 1  # finer noise takes it long to encode
    noise = Image.effect_noise((side // grain, side // grain), 100).convert("RGB")
    slow = encode(noise.resize((side, side), Image.Resampling.NEAREST), kind)
    records = [Record("slow", "slow.png", "shard", slow), Record("quick", "quick.png", "shard", encode(rgb(), "PNG"))]
    rows = list(map(Preparer(InputSpec(16, 16), Limits(picture_timeout_s=0.1)), records))
    assert [row["status"] for row in rows] == [Status.TIMED_OUT, Status.OK]
    assert rows[0]["error"] == "slow.png: decoding took longer than 0.1 s (--picture-timeout-s)"


def test_panorama_is_decoded() -> None:
    assert decode_image(encode(Image.new("RGB", (30_000, 20)), "PNG")).shape == (20, 30_000, 3)


@settings(max_examples=300)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.integers(0, 2000), st.binary(max_size=20))
def test_damaged_files_decode_or_have_a_status(image_format: str, position: int, garbage: bytes) -> None:
    data = encode(rgb(), image_format)
    position %= len(data)
    damaged = data[:position] + garbage + data[position + len(garbage) :]
    try:
        pixels = decode_image(damaged)
    except DecodeError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


def test_seed_is_the_same_everywhere() -> None:
    assert image_seed(b"some bytes") == image_seed(b"some bytes")
    assert image_seed(b"some bytes") != image_seed(b"other bytes")
    assert image_seed(b"abc") == 7808549525826226860
