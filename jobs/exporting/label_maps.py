"""Label maps as PNG: one per image with 0 for background, else the category id."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.storage import Location
from jobs.exporting.files import not_complete, write_bytes
from jobs.exporting.images import LabelledImage, Write, in_threads
from schemas.label_png import id_to_label, label_png

LAST = "id2label.json"


@contextmanager
def label_maps(folder: Location, categories: Sequence[Mapping[str, Any]]) -> Iterator[Write]:
    """Write ``NAME.png`` for every image, and ``id2label.json`` last."""
    not_complete(folder, LAST)

    def write_map(image: LabelledImage) -> None:
        write_bytes(folder / f"{image.name}.png", label_png(image.label_map(), len(categories)))

    def write(images: Sequence[LabelledImage]) -> None:
        in_threads(write_map, images)

    yield write
    write_bytes(folder / LAST, id_to_label(categories))
