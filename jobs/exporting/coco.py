"""COCO JSON: one file, or several of a number of images each."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

from cluster.output.files import atomic_write
from cluster.storage import Location
from jobs.exporting.images import LabelledImage, Object, Write, in_threads
from schemas.coco import Add, Segmentation, annotations_file, results_file, uncompressed


@contextmanager
def coco_files(
    targets: Iterator[Location], images_per_file: int, segmentation: Segmentation, results: bool,
    manifest: Mapping[str, Any], with_label_maps: bool,
) -> Iterator[Write]:  # fmt: skip
    """Write COCO files, each complete in itself.

    Args:
        targets: where they go, as many as are needed, at least one.
        images_per_file: at most.
        segmentation: how masks are written.
        results: write results lists, not annotations files.
        manifest: the labels' manifest.
        with_label_maps: every image names its label map.
    """
    annotation_ids = count(1)
    with ExitStack() as stack:

        def open_next() -> Add:
            file = stack.enter_context(atomic_write(next(targets)))
            description = f"Labels of {manifest['input'].get('address')}"
            document = results_file(file) if results else annotations_file(file, manifest["categories"], description)
            return stack.enter_context(document)

        add, room = open_next(), images_per_file

        def write(images: Sequence[LabelledImage]) -> None:
            nonlocal add, room
            converted = in_threads(lambda image: [annotation(entry, segmentation) for entry in image.objects], images)
            for image, annotations in zip(images, converted, strict=True):
                if room == 0:
                    stack.pop_all().close()
                    add, room = open_next(), images_per_file
                room -= 1
                ids = [{"id": next(annotation_ids), "image_id": image.number} for _ in annotations]
                add(
                    coco_image(image, with_label_maps),
                    [number | entry for number, entry in zip(ids, annotations, strict=True)],
                )

        yield write


def coco_image(image: LabelledImage, with_label_map: bool) -> dict[str, Any]:
    entry = {"id": image.number, "width": image.width, "height": image.height, "file_name": image.image_id}
    label_map = {"label_file": f"{image.name}.png"} if with_label_map else {}
    return entry | {"image_id": image.image_id, "uri": image.uri} | label_map


def annotation(entry: Object, segmentation: Segmentation) -> dict[str, Any]:
    """An object as COCO annotation (stuff convention: ``iscrowd`` 0), without ids."""
    converted = dict(entry.annotation)
    if segmentation == "uncompressed":
        converted["segmentation"] = uncompressed(converted["segmentation"])
    elif segmentation == "polygons":
        converted["segmentation"] = [ring.ravel().tolist() for ring in entry.polygons]
    return converted
