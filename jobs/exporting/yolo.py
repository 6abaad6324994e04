"""YOLO segmentation, as Ultralytics reads it.

``data.yaml``, written last, names the classes and two lists of images, ``train.txt`` and ``val.txt``. Ultralytics finds
the labels of ``images/NAME.jpg`` in ``labels/NAME.txt``, so the images must lie, or be linked, in ``images``. A line of
these files is one polygon, hence one connected component: the class from 0, then x and y as shares of the width and
height.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster.output.files import atomic_write
from cluster.storage import Location
from jobs.exporting.files import is_validation, not_complete, write_bytes
from jobs.exporting.images import LabelledImage, Write, in_threads
from schemas.errors import RequestError

LAST = "data.yaml"
IMAGES = "images"


@contextmanager
def yolo(folder: Location, class_names: Sequence[str], val_fraction: float, images: Location | None) -> Iterator[Write]:
    """Write a data set.

    Args:
        folder: where to.
        class_names: in vocabulary order.
        val_fraction: share of the images for validation. With 0, ``data.yaml`` names the training images twice, because
            Ultralytics wants both.
        images: the folder of the images, to be linked if it and the target are local.
    """
    not_complete(folder, LAST)
    if images is not None and images.is_local and folder.is_local:
        link(folder / IMAGES, images)
    with atomic_write(folder / "train.txt") as train, atomic_write(folder / "val.txt") as val:

        def write(some: Sequence[LabelledImage]) -> None:
            in_threads(lambda image: write_bytes(folder / f"labels/{image.name}.txt", label_lines(image)), some)
            for image in some:
                listed = val if is_validation(image.image_id, val_fraction) else train
                listed.write(f"./{IMAGES}/{image.image_file}\n".encode())

        yield write
    write_bytes(folder / LAST, data_yaml(class_names, with_val=val_fraction > 0))


def label_lines(image: LabelledImage) -> bytes:
    lines = []
    for entry in image.objects:
        for ring in entry.polygons:
            shares = (ring / (image.width, image.height)).ravel().tolist()
            lines.append(" ".join([str(entry.category_id - 1), *(f"{share:.6g}" for share in shares)]) + "\n")
    return "".join(lines).encode("ascii")


def data_yaml(class_names: Sequence[str], with_val: bool) -> bytes:
    """Names are written as JSON strings, which YAML reads."""
    lines = ["train: train.txt", f"val: {'val' if with_val else 'train'}.txt", "names:"]
    lines += [f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(class_names)]
    return ("\n".join(lines) + "\n").encode("utf-8")


def link(place: Location, images: Location) -> None:
    """Make a link to the images. Raises RequestError: they are not there, or the place is taken."""
    if not os.path.isdir(images.path):
        raise RequestError(f"{images} is not a folder, so --yolo cannot link to it")
    if os.path.realpath(place.path) == os.path.realpath(images.path):
        return
    if os.path.islink(place.path):
        os.unlink(place.path)
    elif os.path.lexists(place.path):
        raise RequestError(f"{place} holds files already, so it cannot become a link to {images}: leave out --images")
    os.makedirs(os.path.dirname(place.path), exist_ok=True)
    os.symlink(images.path, place.path, target_is_directory=True)
