"""CVAT for images 1.1: one XML file with polygons, one for each connected component.

The polygons of one object share a ``group_id``. CVAT finds an image by its name, the path in the task.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster.output.files import atomic_write
from cluster.storage import Location
from jobs.exporting.images import LabelledImage, Object, Write, in_threads
from jobs.exporting.markup import Markup


@contextmanager
def cvat(target: Location, class_names: Sequence[str], name: str) -> Iterator[Write]:
    """Write the file.

    Args:
        target: the XML file.
        class_names: in vocabulary order.
        name: of the task.
    """
    with atomic_write(target) as file:
        xml = Markup(file)
        with xml.element("annotations"):
            xml.text("version", "1.1")
            with xml.element("meta"), xml.element("task"):
                xml.text("name", name)
                xml.text("mode", "annotation")
                with xml.element("labels"):
                    for class_name in class_names:
                        with xml.element("label"):
                            xml.text("name", class_name)
                            xml.empty("attributes")

            def write(images: Sequence[LabelledImage]) -> None:
                drawn = in_threads(lambda image: [points_of(entry) for entry in image.objects], images)
                for image, objects in zip(images, drawn, strict=True):
                    add_image(xml, image, objects, class_names)

            yield write


def points_of(entry: Object) -> list[str]:
    return [";".join(f"{x:.2f},{y:.2f}" for x, y in ring.tolist()) for ring in entry.polygons]


def add_image(xml: Markup, image: LabelledImage, objects: Sequence[Sequence[str]], class_names: Sequence[str]) -> None:
    """Write an image and the points of its objects' polygons."""
    size = {"width": str(image.width), "height": str(image.height)}
    with xml.element("image", {"id": str(image.number - 1), "name": image.file} | size):
        for group, (entry, polygons) in enumerate(zip(image.objects, objects, strict=True), start=1):
            attributes = {
                "label": class_names[entry.category_id - 1],
                "source": "auto",
                "occluded": "0",
                "z_order": "0",
            }
            together = {"group_id": str(group)} if len(polygons) > 1 else {}
            for points in polygons:
                xml.empty("polygon", attributes | {"points": points} | together)
