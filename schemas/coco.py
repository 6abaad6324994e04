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


def pixels_of_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The pixels of COCO's polygons or run lengths, bool [height, width].

    Raises:
        ValueError: it is neither, or does not fit the size.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image cannot have {width} x {height} pixels")
    try:
        if isinstance(segmentation, list):
            encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}, and the image has {[height, width]}")
        elif isinstance(segmentation["counts"], list):
            if min(segmentation["counts"]) < 0 or sum(segmentation["counts"]) != height * width:
                raise ValueError("its run lengths do not add up to the image")
            encoded = coco_mask.frPyObjects(segmentation, height, width)
        else:
            encoded = segmentation
        pixels: np.ndarray = coco_mask.decode(encoded)
    except ValueError:
        raise
    except Exception as error:  # pycocotools raises plain exceptions, and almost anything on what is no segmentation
        raise ValueError(f"neither polygons nor run lengths ({' '.join(str(error).split())[:100]})") from error
    return pixels.astype(bool)


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
