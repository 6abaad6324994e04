"""Write labels as COCO JSON and as semantic label maps (PNG), for tools that read those.

Pictures get whole numbers as ids, 1 and so on in the order of their image_id; their file_name is the image_id, and uri
says where the picture is. The same labels always give the same ids, also with --results. Failed pictures are left out.
"""

import posixpath
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import tyro
from rich.console import Console

from cluster.output.files import written_whole
from cluster.output.rows import Labels, open_labels
from cluster.output.sorting import in_order
from cluster.storage import Location
from jobs.common.exit_codes import run_to_exit_code
from jobs.common.targets import check_file_target, check_target, note_unfinished
from jobs.label_maps import LabelMapWriter
from schemas.coco import AnnotationsFile, CocoStyle, ResultsFile, coco_head
from schemas.errors import RequestError

COLUMNS = ("image_id", "uri", "width", "height", "annotations")
BATCH_ROWS = 128
"""Small, because masks are large."""
Picture = tuple[dict[str, Any], list[dict[str, Any]]]
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
    """Every connected component becomes an annotation of its own."""
    polygons: bool = False
    """Masks as polygons; holes are filled."""
    uncompressed: bool = False
    """Masks as lists of run lengths, as CVAT wants them."""
    images_per_file: int | None = None
    """Write NAME-00000.json and so on, each with so many pictures and complete in itself."""
    png: str | None = None
    """Folder for label maps besides: one PNG per picture, 0 for background, else the category id; id2label.json."""
    overwrite: bool = False
    """Replace what is there."""

    def style(self) -> CocoStyle:
        """How annotations are written; raises RequestError: options that do not fit together."""
        if sum((self.results, self.polygons, self.uncompressed)) > 1:
            raise RequestError("choose one of --results, --polygons and --uncompressed")
        if self.images_per_file is not None and self.images_per_file < 1:
            raise RequestError(f"--images-per-file must be at least 1, not {self.images_per_file}")
        if self.polygons:
            return CocoStyle("polygons", self.split_components)
        return CocoStyle("uncompressed" if self.uncompressed else "rle", self.split_components)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code: 0 done, 1 failed, 2 wrong request."""
    options = tyro.cli(ExportOptions, args=arguments, description=__doc__)
    return run_to_exit_code(lambda: export(options, Console()), Console(stderr=True))


def export(options: ExportOptions, console: Console) -> None:
    """From the rows to files."""
    style = options.style()
    labels = open_labels(options.labels, "--labels")
    targets = json_targets(options)
    maps = None
    if options.png:
        folder = check_target("--png", options.png, options.overwrite)
        maps = LabelMapWriter(folder, labels.manifest["categories"])
        maps.write_names()
    note_unfinished(labels, console)
    written = 0
    pictures = coco_pictures(labels, style, maps)
    for target, portion in zip(targets, portions(pictures, options.images_per_file or sys.maxsize), strict=False):
        written += write_file(target, portion, labels, options.results)
    console.print(f"Exported {written:,} pictures: {options.output}", highlight=False, soft_wrap=True)


def json_targets(options: ExportOptions) -> Iterator[Location]:
    """The file to write, or NAME-00000.json and so on.

    Raises:
        RequestError: something is there already.
    """
    target = check_file_target("--output", options.output, options.overwrite)
    if options.images_per_file is None:
        return iter([target])
    stem, ending = posixpath.splitext(target.path)
    fs = target.fs
    older = [
        path for path in fs.glob(f"{stem}-*{ending}") if re.fullmatch(r"\d{5,}", path[len(stem) + 1 : -len(ending)])
    ]
    if older and not options.overwrite:
        raise RequestError(f"--output: {older[0]} exists already: choose another name, or --overwrite to replace it")
    for path in older:
        fs.rm_file(path)
    return (Location(fs, f"{stem}-{number:05}{ending}") for number in count())


def coco_pictures(labels: Labels, style: CocoStyle, maps: LabelMapWriter | None) -> Iterator[Picture]:
    """Every picture and its annotations, with ids; label maps are written on the way."""
    image_ids, annotation_ids = count(1), count(1)
    for table in in_order(batch.select(COLUMNS) for batch in labels.batches(COLUMNS, BATCH_ROWS)):
        rows = table.to_pylist()
        files = maps.write(rows) if maps else [{}] * len(rows)
        for row, file in zip(rows, files, strict=True):
            image = {
                "id": next(image_ids),
                "width": row["width"],
                "height": row["height"],
                "file_name": row["image_id"],
            }
            annotations = [
                {"id": next(annotation_ids), "image_id": image["id"]} | annotation
                for annotation in style.convert(row["annotations"])
            ]
            yield image | {"image_id": row["image_id"], "uri": row["uri"]} | file, annotations


def portions(pictures: Iterator[Picture], size: int) -> Iterator[Iterator[Picture]]:
    """So many pictures at a time, each portion to be taken before the next; at least one, which may be empty."""
    yield islice(pictures, size)
    for first in pictures:
        yield chain([first], islice(pictures, size - 1))


def write_file(target: Location, pictures: Iterator[Picture], labels: Labels, results: bool) -> int:
    """Write one JSON file; returns how many pictures it holds."""
    description = f"Labels of {labels.manifest['input'].get('address')}"
    written = 0
    with written_whole(target) as file:
        head = coco_head(labels.manifest["categories"], description)
        document = ResultsFile(file) if results else AnnotationsFile(file, head)
        for image, annotations in pictures:
            document.add(image, annotations)
            written += 1
        document.close()
    return written


if __name__ == "__main__":
    sys.exit(main())
