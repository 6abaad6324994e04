"""Rows as COCO: annotations in the stuff convention (``iscrowd`` 0), written to JSON one by one.

Polygons follow the mask's border halfway between pixel centres, so that rasterising them gives the same pixels. They
cannot represent holes: everything inside an outline counts as the class.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

import numpy as np
from contourpy import FillType, contour_generator
from pycocotools import mask as coco_mask
from scipy import ndimage

from schemas.runs import annotations_from_labels, run_lengths

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
"""Pixels that share a side or a corner belong to one component."""
RESULT_FIELDS = ("image_id", "category_id", "segmentation", "score")

Filled = tuple[list[np.ndarray], list[np.ndarray]]
"""Per component its outline followed by its holes' outlines [points, 2], and the offsets of these outlines."""
Segmentation = Literal["rle", "uncompressed", "polygons"]
Add = Callable[[Mapping[str, Any], Iterable[Mapping[str, Any]]], None]
"""Writes an image and its annotations, all with their ids."""


@dataclass(frozen=True)
class CocoStyle:
    """How annotations are written.

    Attributes:
        segmentation: COCO's compressed run lengths, lists of run lengths, or polygons.
        split_components: every connected component becomes an annotation.
    """

    segmentation: Segmentation = "rle"
    split_components: bool = False

    def convert(self, annotations: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Convert a row's annotations (`schemas.rows.ANNOTATION`)."""
        for whole in annotations:
            for part in components(whole) if self.split_components else [dict(whole)]:
                if self.segmentation == "uncompressed":
                    part["segmentation"] = uncompressed(part["segmentation"])
                elif self.segmentation == "polygons":
                    part["segmentation"] = polygons(part["segmentation"])
                yield part


def components(annotation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One annotation per connected component, ordered by first pixel, with the class and score of the whole."""
    labels, count = ndimage.label(coco_mask.decode(annotation["segmentation"]), EIGHT_NEIGHBOURS)
    parts = annotations_from_labels(labels, np.full(count, annotation["score"]))
    return [part | {"category_id": annotation["category_id"]} for part in parts]


def uncompressed(segmentation: Mapping[str, Any]) -> dict[str, Any]:
    """Run lengths as a list of numbers, as CVAT expects them."""
    pixels = coco_mask.decode(segmentation).ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels, prepend=0, append=0))
    counts = run_lengths(edges[::2], edges[1::2], pixels.size)
    return {"size": list(segmentation["size"]), "counts": counts.tolist()}


def polygons(segmentation: Mapping[str, Any]) -> list[list[float]]:
    """The outlines of the mask's components: x, y, x, y, ... in pixels from the image's top left corner."""
    padded = np.pad(coco_mask.decode(segmentation).astype(np.float64), 1)
    points, offsets = cast(Filled, contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0))
    outer = (outlines[: begins[1]] for outlines, begins in zip(points, offsets, strict=True))
    return [(outline - 0.5).ravel().tolist() for outline in outer]


@contextmanager
def annotations_file(file: IO[bytes], categories: Sequence[Mapping[str, Any]], description: str) -> Iterator[Add]:
    """Write an annotations file image by image. Annotations are buffered in a temporary file."""
    head = {"info": {"description": description}, "licenses": [], "categories": list(categories)}
    file.write(json.dumps(head, ensure_ascii=False)[:-1].encode("utf-8") + b', "images": ')
    with tempfile.TemporaryFile() as scratch:
        with json_list(file) as add_image, json_list(scratch) as add_annotation:

            def add(image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> None:
                add_image(image)
                for annotation in annotations:
                    add_annotation(annotation)

            yield add
        file.write(b', "annotations": ')
        scratch.seek(0)
        shutil.copyfileobj(scratch, file)
    file.write(b"}\n")


@contextmanager
def results_file(file: IO[bytes]) -> Iterator[Add]:
    """Write a results list, as ``COCO.loadRes`` reads it, with the ids of the annotations file."""
    with json_list(file) as add_result:

        def add(image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> None:
            for annotation in annotations:
                add_result({name: annotation[name] for name in RESULT_FIELDS})

        yield add


@contextmanager
def json_list(file: IO[bytes]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write a JSON list entry by entry."""
    separator = b"[\n"

    def add(entry: Mapping[str, Any]) -> None:
        nonlocal separator
        file.write(separator + json.dumps(entry, ensure_ascii=False).encode("utf-8"))
        separator = b",\n"

    yield add
    file.write(b"[]" if separator == b"[\n" else b"\n]")
