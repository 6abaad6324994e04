"""Label maps of pictures as PNG files in a folder or below a prefix."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.output.files import written_whole
from cluster.output.image_names import split_id
from cluster.storage import Location
from schemas.label_png import id_to_label, label_png
from schemas.runs import labels_from_annotations

WRITERS = 8


class LabelMapWriter:
    """Writes one PNG per picture, at its image id with the ending replaced, and ``id2label.json``.

    Args:
        folder: where to.
        categories: the manifest's.
    """

    def __init__(self, folder: Location, categories: Sequence[Mapping[str, Any]]) -> None:
        self.folder, self.categories = folder, categories
        self.names: set[str] = set()

    def write_names(self) -> None:
        self.write_bytes("id2label.json", id_to_label(self.categories))

    def write(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """Write the label maps of rows; returns for each what its COCO image says of it: ``label_file``."""
        names = [self.name(row["image_id"]) for row in rows]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self.write_map, names, rows))
        return [{"label_file": name} for name in names]

    def write_map(self, name: str, row: Mapping[str, Any]) -> None:
        labels = labels_from_annotations(row["annotations"], row["height"], row["width"])
        self.write_bytes(name, label_png(labels, len(self.categories)))

    def write_bytes(self, name: str, content: bytes) -> None:
        with written_whole(self.folder / name) as file:
            file.write(content)

    def name(self, image_id: str) -> str:
        """A name that no picture has yet: those that differ in their endings only keep them, from the second on."""
        stem, ending = split_id(image_id)
        name = f"{stem}.png"
        while name in self.names:
            stem += ending or "_"
            name = f"{stem}.png"
        self.names.add(name)
        return name
