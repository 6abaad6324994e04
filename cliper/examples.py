"""Labelled examples of classes: a folder of some images with masks, read and decoded; without torch.

Either ``images/``, ``masks/`` and ``classes.txt``: index masks as PNG files with the images' names, 0 for no class and
c for the c-th line. Or ``images/`` and ``annotations.json``: a COCO file, whose segmentations are polygons or run
lengths and whose categories are the classes.

A class's share of a patch is the part of the patch's pixels that it covers. So a mask that is smaller than a patch
counts, and no patch is all or nothing.
"""

import hashlib
import json
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image

from cliper.decode import IMAGE_ENDINGS, MAX_PIXELS, decode_rgb
from cliper.files import Folder, Parsed, decode_text, parse_data
from cliper.ground_truth import IGNORED, OUTSIDE, lookup_table, read_truth, turned_like
from cliper.preprocess import ImageArray, InputSpec
from schemas.coco import pixels_of_segmentation
from schemas.errors import DecodeError
from schemas.rows import Status
from schemas.vocabulary import parse_vocabulary

FLAG = "--examples"
ANNOTATIONS = "annotations.json"
CLASSES = "classes.txt"
UNLABELLED = 255
"""In masks of fewer classes: no class either, as in other data sets."""

Decode = Callable[[bytes, bytes, bytes], Mapping[str, Any]]
"""`ExampleDecoder`, or a process of its own that runs it."""


@dataclass(frozen=True, eq=False)
class Example:
    """A labelled image.

    Attributes:
        clip: RGB pixels on CLIP's patch grid.
        shares: of every class in every patch, 0 to 1; patches row by row.
    """

    clip: ImageArray
    shares: Float32[np.ndarray, "classes patches"]


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of a request.

    Attributes:
        names: the classes; each covers a part of some image.
        images: at least one.
        sha256: digest of all files.
    """

    names: tuple[str, ...]
    images: tuple[Example, ...]
    sha256: str


@dataclass(frozen=True)
class ExampleDecoder:
    """From the bytes of an image and of its labels to the fields of an `Example`.

    Attributes:
        inputs: what CLIP reads.
        max_pixels: a larger image is an error.
        classes: number of classes.
    """

    inputs: InputSpec
    max_pixels: int
    classes: int

    def __call__(self, image: bytes, mask: bytes, segmentations: bytes) -> dict[str, Any]:
        """Pixels ``clip`` and ``shares`` as bytes, ``height`` and ``width`` of the image.

        Args:
            image: a file.
            mask: an index mask; not looked at if there are segmentations.
            segmentations: JSON, a list of class (from 0), size of the image (height, width) and COCO's segmentation;
                empty if there is a mask.

        Raises:
            DecodeError: one of them cannot be used.
        """
        prepared = self.inputs.prepare(decode_rgb(image, self.max_pixels), seed=0)
        height, width = image_hw = prepared.image_hw
        grid_hw = tuple(side // self.inputs.patch_size_px for side in prepared.clip.shape[:2])
        shares = np.zeros((self.classes, grid_hw[0] * grid_hw[1]), np.float32)
        found = drawn(segmentations, image, image_hw) if segmentations else self.from_mask(mask, image, image_hw)
        for label, pixels in found:
            shares[label] = np.minimum(shares[label] + patch_shares(pixels, grid_hw), 1)
        return {"height": height, "width": width, "clip": prepared.clip.tobytes(), "shares": shares.tobytes()}

    def from_mask(self, mask: bytes, image: bytes, image_hw: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
        """The classes (from 0) of an index mask and their pixels."""
        ignored = [UNLABELLED] if self.classes < UNLABELLED else []
        lookup = lookup_table(range(1, self.classes + 1), background=[0], ignored=ignored)
        try:
            truth = read_truth(mask, lookup, self.max_pixels, image, image_hw)
        except DecodeError as error:
            raise DecodeError(error.status, f"its mask: {error}") from error
        for label in np.unique(truth[truth != IGNORED]):
            if label:
                yield int(label) - 1, truth == label


def patch_shares(pixels: Bool[np.ndarray, "height width"], grid_hw: tuple[int, int]) -> Float32[np.ndarray, " patches"]:
    """The part of every patch that pixels cover, 0 to 1, row by row; the grid lies over the whole image."""
    covered = Image.fromarray(pixels.astype(np.float32))
    return np.asarray(covered.resize(grid_hw[::-1], Image.Resampling.BOX)).ravel()


def drawn(segmentations: bytes, image: bytes, image_hw: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """The classes (from 0) of COCO's segmentations and their pixels, turned with the image if they were not."""
    for label, size_hw, segmentation in json.loads(segmentations):
        turned = size_hw != list(image_hw) and size_hw == list(image_hw[::-1])
        if size_hw != list(image_hw) and not turned:
            raise DecodeError(
                Status.NO_TRUTH,
                f"the file has {image_hw[1]} x {image_hw[0]} pixels, {ANNOTATIONS} says {size_hw[1]} x {size_hw[0]}",
            )
        try:
            pixels = pixels_of_segmentation(segmentation, *size_hw)
        except ValueError as error:
            raise DecodeError(Status.NO_TRUTH, f"a segmentation cannot be drawn: {error}") from error
        yield label, turned_like(image, pixels.astype(np.uint8)) > 0 if turned else pixels


def read_examples(
    address: str,
    inputs: InputSpec,
    isolate: Callable[[ExampleDecoder], Decode] = lambda decoder: decoder,
    max_pixels: int = MAX_PIXELS,
    max_file_bytes: int | None = None,
) -> Examples:
    """Read a folder of examples.

    Args:
        address: local path or URL of the folder.
        inputs: what CLIP reads.
        isolate: makes a process of its own of a decoder, for files of strangers.
        max_pixels, max_file_bytes: larger images are refused.

    Raises:
        RequestError: the folder is empty or lacks a file, an image or its labels cannot be used, or a class has no
            pixel in any image.
    """
    folder = Folder.of(FLAG, address)
    digest = hashlib.sha256()

    def read(name: str) -> bytes:
        data = folder.read(name, max_file_bytes)
        digest.update(json.dumps([name, len(data)]).encode("ascii") + data)
        return data

    names, labelled = find_labels(folder, read)
    decode = isolate(ExampleDecoder(inputs, max_pixels, len(names)))
    found = []
    for name, mask, segmentations in labelled:
        try:
            decoded = decode(read(name), mask, segmentations)
        except DecodeError as error:
            raise folder.refusal(name, str(error)) from error
        clip_hw = inputs.clip_hw((decoded["height"], decoded["width"]))
        clip = np.frombuffer(decoded["clip"], np.uint8).reshape(*clip_hw, 3)
        found.append(Example(clip, np.frombuffer(decoded["shares"], np.float32).reshape(len(names), -1)))
    seen = np.sum([example.shares.sum(axis=1) for example in found], axis=0)
    if not seen.all():
        raise folder.refusal(
            "", f"no image shows class {names[int(np.argmin(seen))]!r}: add one, or take the class out"
        )
    return Examples(tuple(names), tuple(found), digest.hexdigest())


def find_labels(folder: Folder, read: Callable[[str], bytes]) -> tuple[list[str], list[tuple[str, bytes, bytes]]]:
    """The classes of a folder of examples; and the path of every labelled image with its mask or its segmentations, as
    `ExampleDecoder` takes them.

    Args:
        folder: the folder.
        read: reads a file of it.

    Raises:
        RequestError: the folder is empty or lacks a file, or one that says what is labelled is wrong.
    """
    images = [name for name in folder.names("images") if name.lower().endswith(IMAGE_ENDINGS)]
    if not images:
        raise folder.refusal("images", "there are no images in it")
    beside = folder.names("")
    if ANNOTATIONS in beside and CLASSES in beside:
        raise folder.refusal("", f"it has {CLASSES} and {ANNOTATIONS}: keep one of them")

    def parse(name: str, parse_it: Callable[[str], Parsed]) -> Parsed:
        return parse_data(folder.place(name), read(name), lambda data: parse_it(decode_text(data)))

    if ANNOTATIONS in beside:
        names, found = parse(ANNOTATIONS, parse_coco)
        unknown = sorted(found.keys() - set(images))
        if unknown:
            raise folder.refusal(f"images/{unknown[0]}", f"{ANNOTATIONS} has labels for it, and it does not exist")
        return names, [(f"images/{name}", b"", json.dumps(found[name]).encode()) for name in images if name in found]
    if CLASSES in beside:
        names = parse(CLASSES, parse_classes)
        masks = [f"masks/{posixpath.splitext(name)[0]}.png" for name in images]
        missing = [mask for mask in masks if mask not in beside]
        if missing:
            raise folder.refusal(missing[0], "an image has no mask, it does not exist")
        return names, [(f"images/{name}", read(mask), b"") for name, mask in zip(images, masks, strict=True)]
    raise folder.refusal("", f"it needs {CLASSES} beside masks, or {ANNOTATIONS}")


def parse_classes(text: str) -> list[str]:
    """Names of the classes, one on each line. Raises ValueError: there are none, or too many for index masks."""
    names = [entry.name for entry in parse_vocabulary(text)]
    if len(names) >= OUTSIDE:
        raise ValueError(f"masks cannot tell {len(names):,} classes apart")
    return names


Labelled = dict[str, list[tuple[int, Sequence[int], Any]]]
"""For images by name, class (from 0), size of the image (height, width) and segmentation of every annotation."""


def parse_coco(text: str) -> tuple[list[str], Labelled]:
    """The categories that have annotations, in the order of ids, and the annotations of every image.

    Raises:
        ValueError: it is no COCO file with segmentations.
    """
    try:
        document = json.loads(text)
        name_of = {int(entry["id"]): str(entry["name"]) for entry in document["categories"]}
        image_of = {
            int(entry["id"]): (str(entry["file_name"]), [int(entry["height"]), int(entry["width"])])
            for entry in document["images"]
        }
        annotations = [
            (int(entry["category_id"]), *image_of[int(entry["image_id"])], entry["segmentation"])
            for entry in document["annotations"]
        ]
        used = sorted({category for category, *_ in annotations})
        names = [name_of[category] for category in used]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is no COCO file with segmentations ({type(error).__name__}: {error})") from error
    if not names:
        raise ValueError("it has no annotation")
    if len(set(names)) < len(names):
        raise ValueError("two categories have the same name")
    found: Labelled = defaultdict(list)
    for category, name, size_hw, segmentation in annotations:
        found[name].append((used.index(category), size_hw, segmentation))
    return names, dict(found)
