"""Export labels as COCO JSON and as semantic label maps (PNG).

Images get the ids 1, 2, ... in the order of their image_id. Their file_name is the image_id, and uri is the address of
the image. The same labels always get the same ids, also with --results. Failed images are left out.
"""

import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

from rich.console import Console

from cluster.output.files import atomic_write, split_id
from cluster.output.rows import Labels, open_labels
from cluster.output.sorting import sorted_by_id
from cluster.storage import Location
from jobs.common.exit_codes import run_job
from jobs.common.targets import check_file_target, check_target, exists_already, note_unfinished
from schemas.coco import CocoStyle, Segmentation, annotations_file, results_file
from schemas.errors import RequestError
from schemas.label_png import id_to_label, label_png
from schemas.runs import labels_from_annotations

COLUMNS = ("image_id", "uri", "width", "height", "annotations")
BATCH_ROWS = 128
"""Small, because masks are large."""
PNG_WRITERS = 8
Row = Mapping[str, Any]
WriteMaps = Callable[[Sequence[Row]], list[str]]
CocoImage = tuple[dict[str, Any], list[dict[str, Any]]]
"""A COCO image and its annotations."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of the export."""

    labels: str
    """Output folder of the labelling job: a local path or a URL."""
    output: str
    """JSON file to write, local or a URL."""
    results: bool = False
    """Write a results list, for COCO.loadRes, instead of an annotations file."""
    split_components: bool = False
    """Write one annotation per connected component."""
    polygons: bool = False
    """Write masks as polygons. Holes are filled."""
    uncompressed: bool = False
    """Write masks as lists of run lengths, as CVAT expects them."""
    images_per_file: int | None = None
    """Write NAME-00000.json and so on, each complete in itself, with this many images."""
    png: str | None = None
    """Also write label maps to this folder: one PNG per image with 0 for background, else the category id, and
    id2label.json."""
    overwrite: bool = False
    """Replace existing files."""

    def style(self) -> CocoStyle:
        """How annotations are written. Raises RequestError: the options contradict each other."""
        if sum((self.results, self.polygons, self.uncompressed)) > 1:
            raise RequestError("choose one of --results, --polygons and --uncompressed")
        if self.images_per_file is not None and self.images_per_file < 1:
            raise RequestError(f"--images-per-file must be at least 1, not {self.images_per_file}")
        other: Segmentation = "uncompressed" if self.uncompressed else "rle"
        return CocoStyle("polygons" if self.polygons else other, self.split_components)


def export(options: ExportOptions, console: Console) -> None:
    """Write the rows as COCO files and label maps."""
    style = options.style()
    labels = open_labels(options.labels, "--labels")
    targets = json_targets(options, labels)
    write_maps = None
    if options.png:
        folder = check_target("--png", options.png, options.overwrite, labels)
        categories = labels.manifest["categories"]
        write_bytes(folder / "id2label.json", id_to_label(categories))
        write_maps = partial(write_label_maps, folder=folder, classes=len(categories), stems=set())
    note_unfinished(labels, console)
    images = chunks(coco_images(labels, style, write_maps), options.images_per_file or sys.maxsize)
    files = zip(targets, images, strict=False)
    written = sum(write_file(target, chunk, labels, options.results) for target, chunk in files)
    console.print(f"Exported {written:,} images: {options.output}", soft_wrap=True)


def json_targets(options: ExportOptions, labels: Labels) -> Iterator[Location]:
    """The file to write, or NAME-00000.json and so on.

    Raises:
        RequestError: such a file exists already, or lies in the labels.
    """
    target = check_file_target("--output", options.output, options.overwrite, labels)
    if options.images_per_file is None:
        return iter([target])
    stem, ending = posixpath.splitext(target.path)
    numbered = re.compile(rf"-\d{{5,}}{re.escape(ending)}")
    older = [path for path in target.fs.glob(f"{stem}-*{ending}") if numbered.fullmatch(path[len(stem) :])]
    if older and not options.overwrite:
        raise exists_already(replace(target, path=older[0]))
    for path in older:
        target.fs.rm_file(path)
    return (replace(target, path=f"{stem}-{number:05}{ending}") for number in count())


def coco_images(
    labels: Labels, style: CocoStyle, write_maps: Callable[[list[Row]], list[str]] | None
) -> Iterator[CocoImage]:
    """Every image and its annotations, with ids. Label maps are written on the way."""
    image_ids, annotation_ids = count(1), count(1)
    for table in sorted_by_id(batch.select(COLUMNS) for batch in labels.batches(COLUMNS, BATCH_ROWS)):
        rows = table.to_pylist()
        files = [{"label_file": name} for name in write_maps(rows)] if write_maps else [{}] * len(rows)
        for row, file in zip(rows, files, strict=True):
            image_id, name = next(image_ids), row["image_id"]
            image = {"id": image_id, "width": row["width"], "height": row["height"], "file_name": name}
            annotations = [
                {"id": next(annotation_ids), "image_id": image_id} | annotation
                for annotation in style.convert(row["annotations"])
            ]
            yield image | {"image_id": name, "uri": row["uri"]} | file, annotations


def chunks(images: Iterator[CocoImage], chunk_size: int) -> Iterator[Iterator[CocoImage]]:
    """Split a stream. Each chunk must be consumed before the next. There is at least one chunk, which may be empty."""
    yield islice(images, chunk_size)
    for first in images:
        yield chain([first], islice(images, chunk_size - 1))


def write_file(target: Location, images: Iterator[CocoImage], labels: Labels, results: bool) -> int:
    """Write one JSON file. Returns the number of images in it."""
    description = f"Labels of {labels.manifest['input'].get('address')}"
    written = 0
    with atomic_write(target) as file:
        document = results_file(file) if results else annotations_file(file, labels.manifest["categories"], description)
        with document as add:
            for image, annotations in images:
                add(image, annotations)
                written += 1
    return written


def write_label_maps(rows: Sequence[Row], folder: Location, classes: int, stems: set[str]) -> list[str]:
    """Write one PNG per image, named like the image id with another ending. Returns the names.

    ``stems`` are those of the maps so far. If ids differ only in their endings, all but the first keep theirs.
    """

    def write_map(name: str, row: Row) -> None:
        labels = labels_from_annotations(row["annotations"], row["height"], row["width"])
        write_bytes(folder / name, label_png(labels, classes))

    names = []
    for row in rows:
        stem, ending = split_id(row["image_id"])
        while stem in stems:
            stem += ending or "_"
        stems.add(stem)
        names.append(f"{stem}.png")
    with ThreadPoolExecutor(PNG_WRITERS) as pool:
        list(pool.map(write_map, names, rows))
    return names


def write_bytes(target: Location, content: bytes) -> None:
    with atomic_write(target) as file:
        file.write(content)


main = partial(run_job, ExportOptions, export, __doc__)

if __name__ == "__main__":
    sys.exit(main())
