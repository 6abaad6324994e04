"""Pascal VOC: masks of classes and of objects as palette PNGs, boxes as XML, and lists of images.

The images are not copied: ``JPEGImages`` is theirs. ``labelmap.txt``, written last, has the classes and their colours.
The masks have no border of void pixels (255) around objects.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cluster.output.files import atomic_write
from cluster.storage import Location
from jobs.exporting.files import is_validation, not_complete, write_bytes
from jobs.exporting.images import LabelledImage, Tally, Write, in_threads
from jobs.exporting.markup import Markup
from schemas.errors import RequestError
from schemas.label_png import label_png, palette

LAST = "labelmap.txt"
TASKS = ("Main", "Segmentation")
MOST = 254
"""Classes, and objects in an image: a pixel is a byte, 0 is background and 255 is void."""


@contextmanager
def voc(folder: Location, class_names: Sequence[str], val_fraction: float, tally: Tally) -> Iterator[Write]:
    """Write a data set.

    Args:
        folder: where to.
        class_names: in vocabulary order.
        val_fraction: share of the images that the lists ``val.txt`` name and ``train.txt`` do not.
        tally: counts the objects of an image beyond the largest `MOST`. They are in the class masks only.
    """
    not_complete(folder, LAST)
    with ExitStack() as stack:
        lists = {
            name: [stack.enter_context(atomic_write(folder / f"ImageSets/{task}/{name}.txt")) for task in TASKS]
            for name in ("train", "val", "trainval")
        }

        def write_image(image: LabelledImage) -> None:
            numbers = object_numbers(image)
            write_bytes(folder / f"SegmentationClass/{image.name}.png", label_png(image.label_map(), MOST))
            write_bytes(folder / f"SegmentationObject/{image.name}.png", label_png(image.label_map(numbers), MOST))
            write_bytes(folder / f"Annotations/{image.name}.xml", boxes_xml(image, numbers, class_names))

        def write(images: Sequence[LabelledImage]) -> None:
            in_threads(write_image, images)
            for image in images:
                tally.objects += max(0, len(image.objects) - MOST)
                part = "val" if is_validation(image.image_id, val_fraction) else "train"
                for file in lists[part] + lists["trainval"]:
                    file.write(f"{image.name}\n".encode())

        yield write
    write_bytes(folder / LAST, label_map_file(class_names))


def check_classes(class_names: Sequence[str]) -> None:
    """Raises RequestError: the classes do not fit the format."""
    if len(class_names) > MOST:
        raise RequestError(f"--voc holds at most {MOST} classes, and the labels have {len(class_names)}")
    for name in class_names:
        if ":" in name or name.startswith("#") or name == "background":
            raise RequestError(f"--voc cannot hold a class of the name {name!r}: its list of classes uses it otherwise")


def object_numbers(image: LabelledImage) -> list[int]:
    """A number from 1 for each object, 0 for all but the largest `MOST`."""
    by_size = sorted(range(len(image.objects)), key=lambda n: -image.objects[n].annotation["area"])
    kept = sorted(by_size[:MOST])
    numbers = dict(zip(kept, range(1, MOST + 1), strict=False))
    return [numbers.get(n, 0) for n in range(len(image.objects))]


def boxes_xml(image: LabelledImage, numbers: Sequence[int], class_names: Sequence[str]) -> bytes:
    """The annotation file. Boxes include their last pixels, and pixels count from 1."""
    file = io.BytesIO()
    xml = Markup(file)
    with xml.element("annotation"):
        xml.text("folder", "JPEGImages")
        xml.text("filename", image.image_file)
        with xml.element("size"):
            for name, value in [("width", image.width), ("height", image.height), ("depth", 3)]:
                xml.text(name, value)
        xml.text("segmented", 1)
        for entry in (entry for entry, number in zip(image.objects, numbers, strict=True) if number):
            left, top, width, height = map(int, entry.annotation["bbox"])
            corners = [("xmin", left + 1), ("ymin", top + 1), ("xmax", left + width), ("ymax", top + height)]
            with xml.element("object"):
                xml.text("name", class_names[entry.category_id - 1])
                for name, content in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
                    xml.text(name, content)
                with xml.element("bndbox"):
                    for name, value in corners:
                        xml.text(name, value)
    return file.getvalue()


def label_map_file(class_names: Sequence[str]) -> bytes:
    """Names and colours as Datumaro and CVAT read them."""
    colours = [",".join(map(str, colour)) for colour in palette().tolist()]
    lines = [f"{name}:{colour}::" for name, colour in zip(["background", *class_names], colours, strict=False)]
    return ("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n").encode("utf-8")
