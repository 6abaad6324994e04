"""Folders of labelled examples: what is read of them, and what is wrong with them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cliper.examples import Examples, read_examples
from cliper.preprocess import InputSpec
from cluster.corpus.examples import find_examples
from cluster.corpus.limits import Limits
from schemas.errors import RequestError

INPUTS = InputSpec(shorter_side_px=64, patch_size_px=16)
GRID = (4, 6)
"""Patches of an image of 80 x 120 pixels, of 20 x 20 pixels each."""


def jpeg(height: int = 80, width: int = 120, orientation: int = 1) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def some_mask() -> np.ndarray:
    """Class 1 covers the patch at the top left and half of the next one, class 2 five pixels of the last one."""
    mask = np.zeros((80, 120), np.uint8)
    mask[:20, :30] = 1
    mask[79, 115:] = 2
    return mask


def some_files() -> dict[str, bytes]:
    return {
        "classes.txt": b"cat\ndog: puppy\n",
        "images/a.jpg": jpeg(),
        "images/below/b.jpg": jpeg(),
        "masks/a.png": png(some_mask()),
        "masks/below/b.png": png(np.full((80, 120), 255, np.uint8)),
        "images/.hidden.jpg": b"",
    }


def coco(segmentations: list[tuple[int, Any]], height: int = 80, width: int = 120) -> bytes:
    """An annotations file with categories 7 (dog), 3 (cat) and 5 (cow) over a.jpg."""
    document = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "cow"}],
        "images": [{"id": 40, "file_name": "a.jpg", "height": height, "width": width}],
        "annotations": [
            {"image_id": 40, "category_id": category, "segmentation": segmentation}
            for category, segmentation in segmentations
        ],
    }
    return json.dumps(document).encode()


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def shares_of(examples: Examples, image: int = 0) -> np.ndarray:
    return examples.images[image].shares.reshape(len(examples.names), *GRID)


def test_shares_of_patches(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, some_files()), INPUTS)
    assert examples.names == ("cat", "dog")
    assert [image.clip.shape for image in examples.images] == [(64, 96, 3)] * 2
    expected = np.zeros((2, *GRID))
    expected[0, 0, :2] = 1, 0.5
    expected[1, 3, 5] = 5 / 400
    assert np.allclose(shares_of(examples), expected, atol=1e-6)
    assert not shares_of(examples, 1).any(), "255 is no class"


def test_a_process_of_its_own_gives_the_same(tmp_path: Path) -> None:
    address = write(tmp_path, some_files())
    ours, theirs = read_examples(address, INPUTS), find_examples(address, INPUTS, Limits())
    assert ours.sha256 == theirs.sha256
    for one, other in zip(ours.images, theirs.images, strict=True):
        assert np.array_equal(one.clip, other.clip)
        assert np.array_equal(one.shares, other.shares)


def test_the_digest_sees_every_file(tmp_path: Path) -> None:
    digests = set()
    for number, name in enumerate([None, *(name for name in some_files() if "hidden" not in name)]):
        files = some_files()
        if name is not None:
            files[name] += b" " if name.endswith(".txt") else b"\0"
        digests.add(read_examples(write(tmp_path / str(number), files), INPUTS).sha256)
    assert len(digests) == 6


def test_coco_files(tmp_path: Path) -> None:
    pixels = some_mask()
    compressed = coco_mask.encode(np.asfortranarray(pixels == 2))
    compressed["counts"] = compressed["counts"].decode()
    counts = [0, *([20, 60] * 30)[:-1], 60 + 90 * 80]
    polygon = [[0, 0, 30, 0, 30, 20, 0, 20]]
    for segmentation in (polygon, {"size": [80, 120], "counts": counts}):
        files = {"images/a.jpg": jpeg(), "annotations.json": coco([(7, compressed), (3, segmentation)])}
        examples = read_examples(write(tmp_path, files), INPUTS)
        assert examples.names == ("cat", "dog"), "the categories that are used, by their ids"
        masks = read_examples(write(tmp_path / "masks", some_files()), INPUTS)
        assert np.allclose(shares_of(examples), shares_of(masks), atol=1e-6)


def test_labels_of_the_pixels_as_they_are_stored(tmp_path: Path) -> None:
    """A camera's image is turned by EXIF; labels that were drawn on the stored pixels are turned with it."""
    image = jpeg(120, 80, orientation=6)  # turned clockwise: the top right comes from the top left
    stored = np.zeros((120, 80), np.uint8)
    stored[:20, :20] = 1
    files = {"classes.txt": b"cat", "images/a.jpg": image, "masks/a.png": png(stored)}
    assert shares_of(read_examples(write(tmp_path / "masks", files), INPUTS))[0, 0, 5] > 0.99
    drawn = coco([(3, [[0, 0, 20, 0, 20, 20, 0, 20]])], 120, 80)
    files = {"images/a.jpg": image, "annotations.json": drawn}
    assert shares_of(read_examples(write(tmp_path / "coco", files), INPUTS))[0, 0, 5] > 0.99


SQUARE = [[0, 0, 20, 0, 20, 20, 0, 20]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images/a.jpg": None, "images/below/b.jpg": None}, "/images: there are no images in it"),
        ({"masks/a.png": None}, "/masks/a.png: an image has no mask, it does not exist"),
        ({"classes.txt": None}, ": it needs classes.txt beside masks, or annotations.json"),
        ({"classes.txt": b""}, "/classes.txt: there is no class in it"),
        ({"classes.txt": b"cat\ncat"}, "/classes.txt: line 2: class 'cat' is already on line 1"),
        ({"classes.txt": b"\xff"}, "/classes.txt: it is not UTF-8 text (byte 0)"),
        ({"classes.txt": b"cat"}, "/images/a.jpg: its mask: the value 2 stands for no class"),
        ({"classes.txt": b"cat\ndog\ncow"}, ": no image shows class 'cow': add one, or take the class out"),
        ({"masks/a.png": png(some_mask()[:-1])}, "/images/a.jpg: its mask: it has 120 x 79 pixels, the image 120 x 80"),
        ({"masks/a.png": b""}, "/images/a.jpg: its mask: it is not a PNG image"),
        ({"masks/a.png": b"?"}, "/images/a.jpg: its mask: it is not a PNG image"),
        ({"images/a.jpg": b"?"}, "/images/a.jpg: the bytes are no image in a known format"),
        ({"images/a.jpg": jpeg()[:900]}, "/images/a.jpg: the image is damaged"),
        ({"annotations.json": b"{}"}, ": it has classes.txt and annotations.json: keep one of them"),
        ({"classes.txt": None, "annotations.json": b"{}"}, "/annotations.json: it is no COCO file with segmentations"),
        ({"classes.txt": None, "annotations.json": b"[" * 99999}, "/annotations.json: it is nested too deeply"),
        ({"classes.txt": None, "annotations.json": coco([])}, "/annotations.json: it has no annotation"),
        ({"classes.txt": None, "annotations.json": coco([(3, 5)])}, "a.jpg: a segmentation cannot be drawn: neither"),
        ({"classes.txt": None, "annotations.json": coco([(3, [])])}, "a.jpg: a segmentation cannot be drawn: neither"),
        (
            {"classes.txt": None, "annotations.json": coco([(3, {"size": [80, 120], "counts": [1, 9**9]})])},
            "a.jpg: a segmentation cannot be drawn: its run lengths do not add up to the image",
        ),
        (
            {"classes.txt": None, "annotations.json": coco([(3, {"size": [8, 12], "counts": [96]})])},
            "a.jpg: a segmentation cannot be drawn: its size is [8, 12], and the image has [80, 120]",
        ),
        (
            {"classes.txt": None, "annotations.json": coco([(3, SQUARE)], 90, 120)},
            "a.jpg: the file has 120 x 80 pixels, annotations.json says 120 x 90",
        ),
        (
            {"classes.txt": None, "annotations.json": coco([(3, SQUARE)]), "images/a.jpg": None},
            "/images/a.jpg: annotations.json has labels for it, and it does not exist",
        ),
        (
            {"classes.txt": None, "annotations.json": coco([(3, [[200, 200, 220, 200, 220, 220]])])},
            ": no image shows class 'cat'",
        ),
    ],
)
def test_one_sentence_says_what_is_wrong(changes: dict[str, bytes | None], message: str, tmp_path: Path) -> None:
    files = {name: data for name, data in (some_files() | changes).items() if data is not None}
    address = write(tmp_path, files)
    with pytest.raises(RequestError) as error:
        find_examples(address, INPUTS, Limits())
    assert f"{error.value}".startswith("--examples ")
    assert message in f"{error.value}"


def test_large_files_and_images_are_refused(tmp_path: Path) -> None:
    address = write(tmp_path, some_files())
    with pytest.raises(RequestError, match=r"images/a\.jpg: it has more than 5,000 pixels"):
        find_examples(address, INPUTS, Limits(max_pixels=5000))
    (tmp_path / "masks/a.png").write_bytes(bytes(10**6 + 1))
    with pytest.raises(RequestError, match=r"masks/a\.png: it has 1,000,001 bytes, more than --max-file-mb allows"):
        find_examples(address, INPUTS, Limits(max_file_mb=1))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere/images: there are no images in it"):
        read_examples(str(tmp_path / "nowhere"), INPUTS)
