"""LabelMe: one JSON file per image with a polygon for each connected component.

The polygons of one object share a ``group_id``. ``labels.txt``, written last, has the classes for ``labelme --labels``.
"""

import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.storage import Location
from jobs.exporting.files import not_complete, write_bytes
from jobs.exporting.images import LabelledImage, Write, in_threads

LAST = "labels.txt"
VERSION = "5.5.0"
"""The version of LabelMe whose files these are like."""


@contextmanager
def labelme(folder: Location, class_names: Sequence[str], images: Location | None) -> Iterator[Write]:
    """Write the files.

    Args:
        folder: where to.
        class_names: in vocabulary order.
        images: the folder of the images, if it is local like the target. By default they lie beside the JSON files.
    """
    not_complete(folder, LAST)
    source = images.path if images is not None and images.is_local and folder.is_local else None

    def write_file(image: LabelledImage) -> None:
        target = folder / f"{image.name}.json"
        beside = posixpath.basename(image.file)
        path = os.path.relpath(f"{source}/{image.file}", posixpath.dirname(target.path)) if source else beside
        write_bytes(target, document(image, path, class_names))

    def write(some: Sequence[LabelledImage]) -> None:
        in_threads(write_file, some)

    yield write
    write_bytes(folder / LAST, ("\n".join(class_names) + "\n").encode("utf-8"))


def document(image: LabelledImage, image_path: str, class_names: Sequence[str]) -> bytes:
    shapes = []
    for group, entry in enumerate(image.objects, start=1):
        for ring in entry.polygons:
            shapes.append(
                {
                    "label": class_names[entry.category_id - 1],
                    "points": ring.round(2).tolist(),
                    "group_id": group if len(entry.polygons) > 1 else None,
                    "description": f"score {entry.annotation['score']:.3f}",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    size = {"imageHeight": image.height, "imageWidth": image.width}
    file: dict[str, Any] = {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
    } | size
    return json.dumps(file, ensure_ascii=False).encode("utf-8")
