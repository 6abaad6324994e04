"""COCO's other forms of a mask, and its files, written entry by entry."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from schemas.runs import run_lengths

RESULT_FIELDS = ("image_id", "category_id", "segmentation", "score")

Segmentation = Literal["rle", "uncompressed", "polygons"]
"""How masks are written: COCO's compressed run lengths, lists of run lengths, or polygons."""
Add = Callable[[Mapping[str, Any], Iterable[Mapping[str, Any]]], None]
"""Writes an image and its annotations, all with their ids."""


def uncompressed(segmentation: Mapping[str, Any]) -> dict[str, Any]:
    """Run lengths as a list of numbers, as CVAT expects them."""
    pixels = coco_mask.decode(segmentation).ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels, prepend=0, append=0))
    counts = run_lengths(edges[::2], edges[1::2], pixels.size)
    return {"size": list(segmentation["size"]), "counts": counts.tolist()}


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
