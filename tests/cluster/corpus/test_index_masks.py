"""Folders of images and index masks: every kind of PNG is read by its values, and what is wrong is said."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliper.ground_truth import IGNORED
from cluster.corpus.labelled import LabelledCorpus, list_index_masks
from cluster.corpus.limits import Limits
from cluster.storage import Location, open_location
from schemas.errors import DecodeError, RequestError
from tests.support.labelled_world import png_bytes, read_mask

LIMITS = Limits(max_pixels=10_000)


def at(folder: Path) -> Location:
    return open_location(str(folder), "--images")


def ids_of(labelled: LabelledCorpus) -> list[str]:
    return [shard.name for shard in labelled.corpus.shards]


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of less than eight bits, which Pillow does not write."""
    bit_rows = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(len(values), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bit_rows)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def jpeg_bytes() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write(root: Path, contents: dict[str, bytes]) -> None:
    """Images in ``images``, masks in ``masks``, of these names without ending."""
    for name, content in contents.items():
        for path, data in [(f"images/{name}.JPG", b"image"), (f"masks/{name}.png", content)]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)


WIDE = np.array([[0, 300, 1000], [999, 1, 65535]], np.uint16)
SMALL = np.array([[0, 1, 2], [3, 3, 0]], np.uint8)


def palette_png(values: np.ndarray) -> bytes:
    image = Image.fromarray(values)
    image.putpalette([200, 0, 0, 100, 100, 0, 0, 0, 50, 7, 7, 7])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=0)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "classes", "background", "ignore", "expected"),
    [
        (png_bytes(SMALL), 3, True, {255}, [[0, 1, 2], [3, 3, 0]]),
        (png_bytes(SMALL), 4, False, {255}, [[1, 2, 3], [4, 4, 1]]),
        (png_bytes(SMALL), 3, False, {3}, [[1, 2, 3], [IGNORED, IGNORED, 1]]),
        (png_bytes(SMALL), 3, True, {0, 255}, [[IGNORED, 1, 2], [3, 3, IGNORED]]),
        (palette_png(SMALL), 4, False, set(), [[1, 2, 3], [4, 4, 1]]),
        (grey_png(SMALL, 2), 4, False, {255}, [[1, 2, 3], [4, 4, 1]]),
        (grey_png(SMALL * 5, 4), 16, False, {255}, [[1, 6, 11], [16, 16, 1]]),
        (grey_png(SMALL > 1, 1), 1, True, {255}, [[0, 0, 1], [1, 1, 0]]),
        (png_bytes(WIDE), 1000, True, {65535}, [[0, 300, 1000], [999, 1, IGNORED]]),
    ],
    ids=["background", "no-background", "ignore", "ignore-0", "palette", "2-bit", "4-bit", "1-bit", "16-bit"],
)
def test_index_masks(
    content: bytes, classes: int, background: bool, ignore: set[int], expected: list[list[int]], tmp_path: Path
) -> None:
    write(tmp_path, {"a": content, "sub/b": content})
    labelled = list_index_masks(at(tmp_path / "images"), at(tmp_path / "masks"), classes, background, frozenset(ignore))
    assert ids_of(labelled) == ["a.JPG", "sub/b.JPG"]
    for image_id in ids_of(labelled):
        assert read_mask(labelled, image_id).tolist() == expected


@pytest.mark.parametrize(
    ("content", "classes", "background", "value"),
    [
        (png_bytes(SMALL), 2, True, 3),
        (png_bytes(SMALL), 3, False, 3),
        (png_bytes(WIDE), 999, True, 1000),
        (png_bytes(WIDE), 1000, True, 65535),
    ],
)
def test_index_masks_with_a_value_of_no_class(
    content: bytes, classes: int, background: bool, value: int, tmp_path: Path
) -> None:
    write(tmp_path, {"a": content})
    labelled = list_index_masks(at(tmp_path / "images"), at(tmp_path / "masks"), classes, background)
    with pytest.raises(DecodeError, match=f"^the value {value} stands for no class"):
        read_mask(labelled, "a.JPG")


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [
        ("data", "data", ".jpg"),
        ("data", "data/masks", ".jpg"),
        ("data", "data/masks", ".png"),
        ("data/images", "data", ".jpg"),
        ("data/images", "data", ".png"),
    ],
)
def test_folders_inside_each_other(images: str, masks: str, ending: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for folder, file, content in [
            (images, f"{name}{ending}", b"image"),
            (masks, f"{name}.png", png_bytes(SMALL)),
        ]:
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / file).write_bytes(content)
    labelled = list_index_masks(at(tmp_path / images), at(tmp_path / masks), 3, True)
    assert ids_of(labelled) == [f"a{ending}", f"b{ending}"]
    assert read_mask(labelled, f"a{ending}").tolist() == SMALL.tolist()


@pytest.mark.parametrize(
    ("images", "masks", "arguments", "message"),
    [
        ("none", "masks", {}, "images .*/none: it does not exist"),
        ("images", "none", {}, "masks .*/none: it does not exist"),
        ("empty", "masks", {}, r"images .*/empty: there are none \(names end in \.avif, "),
        ("images", "empty", {}, r"masks .*/empty: there are none .*: a\.JPG needs .*/empty/a\.png"),
        ("images", "masks", {"classes": 65_534}, "masks cannot tell 65,534 classes apart: at most 65,533"),
        ("images", "masks", {"ignore": frozenset({-1})}, r"values of masks are 0 to 65535: \[-1\] cannot"),
    ],
)
def test_wrong_index_masks_are_refused(images: str, masks: str, arguments: dict, message: str, tmp_path: Path) -> None:
    write(tmp_path, {"a": png_bytes(SMALL)})
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=message):
        list_index_masks(
            at(tmp_path / images), at(tmp_path / masks), **({"classes": 3, "background": True} | arguments)
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it does not exist"),
        (b"", "it is not a PNG image"),
        (b"no image", "it is not a PNG image"),
        (jpeg_bytes(), "it is not a PNG image"),
        (png_bytes(np.zeros((64, 64), np.uint8))[:60], "it is damaged"),
        (png_bytes(np.zeros((4, 4, 3), np.uint8)), r"it has colours \(RGB\)"),
        (png_bytes(np.zeros((4, 4, 4), np.uint8)), r"it has colours \(RGBA\)"),
        (png_bytes(np.zeros((101, 100), np.uint8)), "100 x 101 are more than 10,000 pixels"),
    ],
    ids=["missing", "empty", "no-image", "jpeg", "cut", "rgb", "rgba", "large"],
)
def test_masks_that_cannot_be_used_are_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    write(tmp_path, {"a": png_bytes(SMALL), "b": png_bytes(SMALL)})
    labelled = list_index_masks(at(tmp_path / "images"), at(tmp_path / "masks"), 3, True, limits=LIMITS)
    mask = tmp_path / "masks/b.png"
    mask.unlink() if content is None else mask.write_bytes(content)
    with pytest.raises(DecodeError, match=f"^{message}"):
        read_mask(labelled, "b.JPG")


def test_limit_takes_the_first_images(tmp_path: Path) -> None:
    write(tmp_path, {name: png_bytes(SMALL) for name in ("c", "a", "b")})
    labelled = list_index_masks(at(tmp_path / "images"), at(tmp_path / "masks"), 3, True, limit=2)
    assert ids_of(labelled) == ["a.JPG", "b.JPG"]
