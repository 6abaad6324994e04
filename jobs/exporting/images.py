"""What every format writes: images with their objects, as a stream in the order of the image ids."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from scipy import ndimage

from cluster.output.rows import Labels
from cluster.output.sorting import sorted_by_id
from jobs.exporting.names import Names
from schemas.errors import RequestError
from schemas.polygons import polygons
from schemas.runs import annotations_from_labels, check_size, pixels_of

COLUMNS = ("image_id", "uri", "width", "height", "annotations")
BATCH_ROWS = 128
BATCH_PIXELS = 32_000_000
"""Images that are shaped and written at a time have at most so many pixels together, or are a single one."""
THREADS = 8
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
"""Pixels that share a side or a corner belong to one component."""

Annotation = Mapping[str, Any]
"""The fields of `schemas.rows.ANNOTATION`."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shaping:
    """What is made of the masks before a format writes them.

    Attributes:
        split_components: every connected component becomes an object.
        min_area: components with fewer pixels are left out, and masks without another component.
        simplify_px: size of the details that polygons leave out, in pixels; see `schemas.polygons.polygons`.
    """

    split_components: bool = False
    min_area: int = 0
    simplify_px: float = 1.0


@dataclass
class Tally:
    """Counts what an export leaves out or names otherwise.

    Attributes:
        rows: rows with another status than ok, by status.
        components: components smaller than the least area.
        masks: masks of nothing else.
        objects: objects that a format cannot hold.
        renamed: images whose `LabelledImage.image_file` is not their own name, because another image has it but for the
            ending.
    """

    rows: Counter[str] = field(default_factory=Counter)
    components: int = 0
    masks: int = 0
    objects: int = 0
    renamed: int = 0


@dataclass(frozen=True)
class Window:
    """The smallest box around an object: its first pixels from the left and from the top, and bool [height, width]."""

    left: int
    top: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Object:
    """A mask, or a component of one.

    Attributes:
        annotation: its class, score, area, box and run lengths.
        simplify_px: of its polygons.
        known_window: its pixels, where they were decoded already.
    """

    annotation: Annotation
    simplify_px: float
    known_window: Window | None = None

    @property
    def category_id(self) -> int:
        return int(self.annotation["category_id"])

    @property
    def window(self) -> Window:
        """The pixels, decoded each time, to save memory. Raises RequestError: the run lengths are damaged."""
        if self.known_window is not None:
            return self.known_window
        pixels = pixels_of(self.annotation["segmentation"], *self.annotation["segmentation"]["size"])
        boxes = ndimage.find_objects(pixels.astype(np.uint8))
        rows, columns = boxes[0] if boxes else (slice(0, 0), slice(0, 0))
        return Window(columns.start, rows.start, pixels[rows, columns])

    @cached_property
    def polygons(self) -> list[np.ndarray]:
        """One closed ring per component, float [points, 2]: x, y in pixels of the image."""
        window = self.window
        corner = np.array([window.left, window.top])
        return [ring + corner for ring in polygons(window.pixels, self.simplify_px)]


@dataclass(frozen=True)
class LabelledImage:
    """An image and its objects.

    Attributes:
        number: 1, 2, ... in the order of the image ids.
        image_id, uri, width, height: as in the row.
        name: a path for a file about the image, without an ending. No other image has it.
        file: the image id as a safe path, with the image's ending if it has one.
        ending: this ending.
        objects: its masks or their components, by ascending class.
    """

    number: int
    image_id: str
    uri: str
    width: int
    height: int
    name: str
    file: str
    ending: str
    objects: Sequence[Object]

    @property
    def image_file(self) -> str:
        """The image's name where tools know it by the name of the file about it. Rows of tables are taken for JPEG."""
        return f"{self.name}{self.ending or '.jpg'}"

    def label_map(self, numbers: Iterable[int] | None = None) -> np.ndarray:
        """Paint the objects: int32 [height, width], 0 for background, else the class, or the object's given number."""
        labels = np.zeros((self.height, self.width), np.int32)
        for entry, number in zip(self.objects, numbers or (entry.category_id for entry in self.objects), strict=True):
            window = entry.window
            height, width = window.pixels.shape
            box = labels[window.top : window.top + height, window.left : window.left + width]
            box[window.pixels] = number
        return labels


Write = Callable[[Sequence[LabelledImage]], None]
"""Writes some images. Every format is a context manager that yields one, and completes its files at the end."""


def labelled_images(labels: Labels, shaping: Shaping, tally: Tally) -> Iterator[list[LabelledImage]]:
    """Stream the images, some at a time.

    Raises:
        OSError: the storage failed.
        RequestError: a row is damaged.
    """
    numbers, names = count(1), Names()
    rows = (batch.select(COLUMNS) for batch in labels.batches(COLUMNS, BATCH_ROWS, tally.rows))
    for table in sorted_by_id(rows):
        for some in batches_of(table):
            images = []
            for row, found in zip(some, in_threads(partial(shaped, shaping=shaping), some), strict=True):
                tally.components += found.components
                tally.masks += found.masks
                size = row["width"], row["height"]
                name, file, ending = names.of(row["image_id"])
                tally.renamed += f"{name}{ending}" != file
                place = row["image_id"], row["uri"], *size, name, file, ending
                images.append(LabelledImage(next(numbers), *place, found.objects))
            yield images


def batches_of(table: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """Rows, at most `BATCH_ROWS` and `BATCH_PIXELS` at a time."""
    some: list[dict[str, Any]] = []
    pixels = 0
    for start in range(0, len(table), BATCH_ROWS):
        for row in table.slice(start, BATCH_ROWS).to_pylist():
            size = (row["width"] or 0) * (row["height"] or 0)
            if some and (len(some) == BATCH_ROWS or pixels + size > BATCH_PIXELS):
                yield some
                some, pixels = [], 0
            some.append(row)
            pixels += size
    if some:
        yield some


@dataclass(frozen=True)
class Shaped:
    """The objects of a row or of a mask, and the numbers of components and masks that are left out."""

    objects: list[Object]
    components: int = 0
    masks: int = 0


def shaped(row: Mapping[str, Any], shaping: Shaping) -> Shaped:
    """The objects of a row. Raises RequestError: the row is damaged."""
    if not row["width"] or not row["height"] or row["annotations"] is None:
        raise RequestError(f"the labels are damaged: {row['image_id']} has status ok and no size or no annotations")
    parts = []
    for annotation in row["annotations"]:
        check_size(annotation["segmentation"], row["height"], row["width"])
        parts.append(parts_of(annotation, shaping))
    return Shaped(
        [entry for part in parts for entry in part.objects],
        sum(part.components for part in parts),
        sum(part.masks for part in parts),
    )


def parts_of(annotation: Annotation, shaping: Shaping) -> Shaped:
    """A mask's components that are large enough, together, or each alone and ordered by their first pixels."""
    if not shaping.split_components and shaping.min_area <= 1:
        return Shaped([Object(annotation, shaping.simplify_px)])
    pixels = pixels_of(annotation["segmentation"], *annotation["segmentation"]["size"])
    labels, found = ndimage.label(pixels, EIGHT_NEIGHBOURS)
    large = np.bincount(labels.ravel(), minlength=found + 1) >= shaping.min_area
    large[0] = False
    small = found - int(large.sum())
    if small == found:
        return Shaped([], small, 1)
    if not shaping.split_components:
        rest = annotations_of(large[labels].astype(np.int32), annotation)[0] if small else annotation
        return Shaped([Object(rest, shaping.simplify_px)], small)
    labels = np.where(large, large.cumsum(), 0)[labels]
    windows = [
        Window(columns.start, rows.start, labels[rows, columns] == number)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1)
    ]
    components = zip(annotations_of(labels, annotation), windows, strict=True)
    return Shaped([Object(component, shaping.simplify_px, window) for component, window in components], small)


def annotations_of(labels: np.ndarray, whole: Annotation) -> list[dict[str, Any]]:
    """One annotation per label, with the class and score of the whole."""
    parts = annotations_from_labels(labels, np.full(int(labels.max()), whole["score"]))
    return [part | {"category_id": whole["category_id"]} for part in parts]


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The function's results, in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))
