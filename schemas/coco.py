"""Rows as COCO: annotations in the stuff convention (``iscrowd`` 0), written to JSON one by one.

Polygons run along the mask's border halfway between pixel centres, so that drawing them again gives the same pixels.
They cannot hold holes: what is inside an outline counts as the class's.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

import numpy as np
from contourpy import FillType, contour_generator
from pycocotools import mask as coco_mask
from scipy import ndimage

from schemas.runs import annotations_from_labels, run_lengths

TOUCHING = np.ones((3, 3), bool)
"""Pixels that share a side or a corner belong to one component."""
COPY_BYTES = 2**20

Filled = tuple[list[np.ndarray], list[np.ndarray]]
"""Per component its outline followed by its holes' outlines [points, 2], and where each of them begins."""
Segmentation = Literal["rle", "uncompressed", "polygons"]


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
        """A row's annotations in this style; `schemas.rows.ANNOTATION` says what is in them."""
        for whole in annotations:
            for part in components(whole) if self.split_components else [dict(whole)]:
                match self.segmentation:
                    case "uncompressed":
                        part["segmentation"] = uncompressed(part["segmentation"])
                    case "polygons":
                        part["segmentation"] = polygons(part["segmentation"])
                yield part


def components(annotation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One annotation per connected component, in the order of their first pixels, with the whole's class and score."""
    labels, count = ndimage.label(coco_mask.decode(annotation["segmentation"]), TOUCHING)
    parts = annotations_from_labels(labels, np.full(count, annotation["score"]))
    return [part | {"category_id": annotation["category_id"]} for part in parts]


def uncompressed(segmentation: Mapping[str, Any]) -> dict[str, Any]:
    """Run lengths as a list of numbers, as CVAT wants them."""
    pixels = coco_mask.decode(segmentation).ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels, prepend=0, append=0))
    counts = run_lengths(edges[::2], edges[1::2], pixels.size)
    return {"size": list(segmentation["size"]), "counts": counts.tolist()}


def polygons(segmentation: Mapping[str, Any]) -> list[list[float]]:
    """The outlines of the mask's components: x, y, x, y, ... in pixels from the picture's corner."""
    padded = np.pad(coco_mask.decode(segmentation).astype(np.float64), 1)
    points, offsets = cast(Filled, contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0))
    outer = (outlines[: begins[1]] for outlines, begins in zip(points, offsets, strict=True))
    return [(outline - 0.5).ravel().tolist() for outline in outer]


def coco_head(categories: Sequence[Mapping[str, Any]], description: str) -> dict[str, Any]:
    """What an annotations file holds besides images and annotations."""
    return {"info": {"description": description}, "licenses": [], "categories": list(categories)}


class AnnotationsFile:
    """Writes an annotations file picture by picture; annotations wait in a temporary file.

    Args:
        file: to write to; stays open.
        head: from `coco_head`.
    """

    def __init__(self, file: IO[bytes], head: Mapping[str, Any]) -> None:
        self.file = file
        self.spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self.images, self.annotations = JsonList(file), JsonList(self.spool)
        file.write(json.dumps(head, ensure_ascii=False)[:-1].encode("utf-8") + b', "images": ')

    def add(self, image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> None:
        """Write a picture and its annotations, all with their ids."""
        self.images.add(image)
        for annotation in annotations:
            self.annotations.add(annotation)

    def close(self) -> None:
        """Write what is left."""
        self.images.close()
        self.annotations.close()
        self.file.write(b', "annotations": ')
        self.spool.seek(0)
        shutil.copyfileobj(self.spool, self.file, COPY_BYTES)
        self.file.write(b"}\n")
        self.spool.close()


class ResultsFile:
    """Writes a results list: what ``COCO.loadRes`` takes, with ids as in the annotations file."""

    FIELDS = ("image_id", "category_id", "segmentation", "score")

    def __init__(self, file: IO[bytes]) -> None:
        self.results = JsonList(file)

    def add(self, image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> None:
        """Write a picture's annotations."""
        for annotation in annotations:
            self.results.add({name: annotation[name] for name in self.FIELDS})

    def close(self) -> None:
        self.results.close()


class JsonList:
    """A JSON list, written entry by entry."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.before = file, b"[\n"

    def add(self, entry: Mapping[str, Any]) -> None:
        self.file.write(self.before + json.dumps(entry, ensure_ascii=False).encode("utf-8"))
        self.before = b",\n"

    def close(self) -> None:
        self.file.write(b"\n]" if self.before == b",\n" else b"[]")
