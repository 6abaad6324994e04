"""Label Studio: a JSON list of tasks to import, with the masks as predictions for the brush.

The labelling interface that they fit is written beside it, as ``NAME.label_config.xml``.
"""

import io
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.output.files import atomic_write
from cluster.storage import Location
from jobs.exporting.files import write_bytes
from jobs.exporting.images import LabelledImage, Object, Write, in_threads
from jobs.exporting.markup import Markup
from schemas.coco import json_list

FROM_NAME, TO_NAME = "brush", "image"
CHANNELS = 4
"""The brush's masks are RGBA images."""
LENGTH_BITS = np.array([4, 8, 12, 16])
"""Numbers of bits for the length of a run; each run says which of them it uses."""
MOST = 2**16
"""Longest run that fits."""


@contextmanager
def label_studio(target: Location, class_names: Sequence[str], images: Location | None, model: str) -> Iterator[Write]:
    """Write the tasks.

    Args:
        target: the JSON file.
        class_names: in vocabulary order.
        images: where Label Studio finds the images; by default at the uri of each row.
        model: name of what made the labels.
    """
    write_bytes(config_place(target), label_config(class_names))
    with atomic_write(target) as file, json_list(file) as add:

        def task(image: LabelledImage) -> dict[str, Any]:
            results = [result(entry, image, number, class_names) for number, entry in enumerate(image.objects, start=1)]
            address = (images / image.file).url if images is not None else image.uri
            scores = [entry.annotation["score"] for entry in image.objects]
            prediction = {"model_version": model, "score": max(scores, default=0.0), "result": results}
            return {"data": {TO_NAME: address, "image_id": image.image_id}, "predictions": [prediction]}

        def write(some: Sequence[LabelledImage]) -> None:
            for entry in in_threads(task, some):
                add(entry)

        yield write


def config_place(target: Location) -> Location:
    """Where the labelling interface is written."""
    return replace(target, path=f"{posixpath.splitext(target.path)[0]}.label_config.xml")


def result(entry: Object, image: LabelledImage, number: int, class_names: Sequence[str]) -> dict[str, Any]:
    """One mask as a region of the brush."""
    return {
        "id": f"{image.number}-{number}", "from_name": FROM_NAME, "to_name": TO_NAME,
        "type": "brushlabels", "origin": "prediction",
        "original_width": image.width, "original_height": image.height, "image_rotation": 0,
        "score": entry.annotation["score"],
        "value": {
            "format": "rle", "rle": brush_rle(entry, image.height, image.width),
            "brushlabels": [class_names[entry.category_id - 1]],
        },
    }  # fmt: skip


def brush_rle(entry: Object, height: int, width: int) -> list[int]:
    """A mask in the brush's run-length encoding, as bytes.

    It encodes an RGBA image row by row, with 255 in all channels of the mask's pixels: 32 bits for the number of
    values, 5 for the bits of a value less 1, four times 4 for the bits of lengths less 1. Then come the runs, each a
    set bit, 2 bits for the size of its length, the length less 1, and the value.
    """
    window = entry.window
    pixels = np.zeros((height, width), bool)
    rows, columns = window.pixels.shape
    pixels[window.top : window.top + rows, window.left : window.left + columns] = window.pixels
    starts = np.concatenate([[0], np.flatnonzero(np.diff(pixels.ravel())) + 1])
    lengths = np.diff(starts, append=pixels.size) * CHANNELS
    pieces = -(-lengths // MOST)
    values = np.repeat(pixels.ravel()[starts] * 255, pieces)
    last = np.cumsum(pieces) - 1
    sizes = np.full(int(pieces.sum()), MOST)
    sizes[last] = lengths - (pieces - 1) * MOST
    kinds = np.searchsorted(2**LENGTH_BITS, sizes)
    bits = LENGTH_BITS[kinds]
    runs = (((0b100 | kinds) << bits | (sizes - 1)) << 8) | values
    head = [(pixels.size * CHANNELS, 32), (8 - 1, 5), *((int(size) - 1, 4) for size in LENGTH_BITS)]
    words, counts = np.array(head).T
    stream = bits_of(np.concatenate([words, runs]), np.concatenate([counts, bits + 11]))
    return np.packbits(stream).tolist()


def bits_of(words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The lowest bits of each word, as many as counted, highest first."""
    all_bits = np.unpackbits(words.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    return all_bits[np.arange(32) >= 32 - counts[:, None]]


def label_config(class_names: Sequence[str]) -> bytes:
    """The labelling interface: the image, and a brush for every class."""
    file = io.BytesIO()
    xml = Markup(file)
    with xml.element("View"):
        xml.empty("Image", {"name": TO_NAME, "value": f"${TO_NAME}", "zoom": "true"})
        with xml.element("BrushLabels", {"name": FROM_NAME, "toName": TO_NAME}):
            for name in class_names:
                xml.empty("Label", {"value": name})
    return file.getvalue()
