"""Export labels to the formats of training and labelling tools: COCO, label maps (PNG), YOLO, Pascal VOC, Label Studio,
CVAT and LabelMe.

Images come in the order of their image_id, so the same labels always make the same files. Failed images are left out.
Files are named after the image_id, escaped where a file system needs it. What makes an export complete is written last.

Examples:
  cliper export --labels labels --yolo dataset --images images --min-area 100
  cliper export --labels labels --output coco.json --polygons
"""

import math
import posixpath
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import ClassVar

from rich.console import Console

from cliper.asked import flag
from cluster.output.rows import Labels, open_labels
from cluster.storage import Location, open_location
from jobs.common.exit_codes import run_job
from jobs.common.targets import check_file_target, check_target, exists_already, note_unfinished
from jobs.exporting.coco import coco_files
from jobs.exporting.cvat import cvat
from jobs.exporting.images import Shaping, Tally, Write, labelled_images
from jobs.exporting.label_maps import label_maps
from jobs.exporting.label_studio import config_place, label_studio
from jobs.exporting.labelme import labelme
from jobs.exporting.voc import MOST, check_classes, voc
from jobs.exporting.yolo import yolo
from schemas.coco import Segmentation
from schemas.errors import RequestError

FORMATS = ("output", "png", "yolo", "voc", "label_studio", "cvat", "labelme")
FILES = ("output", "label_studio", "cvat")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")
"""What the formats cannot hold in the name of a class."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of the export. Give at least one of --output, --png, --yolo, --voc, --label-studio, --cvat, --labelme."""

    basic: ClassVar = ("labels", *FORMATS, "images", "min_area")
    labels: str
    """Output folder of the labelling job: a local path or a URL."""
    output: str | None = None
    """COCO: JSON file to write, local or a URL."""
    results: bool = False
    """Write a COCO results list, for COCO.loadRes, instead of an annotations file."""
    polygons: bool = False
    """Write COCO masks as polygons. Holes are joined to the outline by a cut without width."""
    uncompressed: bool = False
    """Write COCO masks as lists of run lengths, as CVAT expects them."""
    images_per_file: int | None = None
    """Write NAME-00000.json and so on, each complete in itself, with this many images."""
    png: str | None = None
    """Label maps: folder for one PNG per image with 0 for background, else the category id, and id2label.json."""
    yolo: str | None = None
    """YOLO segmentation: folder for data.yaml, train.txt, val.txt and labels/. Ultralytics looks for the images in
    images/ beside labels/: copy or link them there, or give --images."""
    voc: str | None = None
    """Pascal VOC: folder for SegmentationClass, SegmentationObject, Annotations, ImageSets and labelmap.txt. Images
    belong into JPEGImages and are not copied."""
    label_studio: str | None = None
    """Label Studio: JSON file of tasks to import, with masks as predictions of the brush; the labelling interface is
    written beside it (NAME.label_config.xml)."""
    cvat: str | None = None
    """CVAT for images 1.1: XML file with polygons."""
    labelme: str | None = None
    """LabelMe: folder for one JSON file per image, and labels.txt."""
    images: str | None = None
    """Folder or URL of the images, where each has the path that its image_id says. --yolo links images/ to it and
    --labelme names the files in it, both if it is a local folder; --label-studio begins addresses with it (by default
    they are the rows' uri)."""
    val_fraction: float = 0.1
    """Share of the images for validation in --yolo and --voc. A hash of the image_id decides."""
    split_components: bool = False
    """Make an object of every connected component. By default an object is all that an image shows of a class."""
    min_area: int = 0
    """Leave out connected components of fewer pixels, and masks of nothing else."""
    simplify_px: float = 1.0
    """Size of the details that polygons leave out, in pixels; 0 keeps every corner. Polygons overlap with their mask by
    98 % at least (intersection over union)."""
    overwrite: bool = False
    """Replace existing files."""

    def shaping(self) -> Shaping:
        """What is made of masks. Raises RequestError: an option is out of range, or contradicts others."""
        if not any(getattr(self, name) for name in FORMATS):
            raise RequestError(f"give at least one of {', '.join(map(flag, FORMATS))}")
        if sum((self.results, self.polygons, self.uncompressed)) > 1:
            raise RequestError("choose one of --results, --polygons and --uncompressed")
        if not self.output:
            for name in ("results", "polygons", "uncompressed", "images_per_file"):
                if getattr(self, name):
                    raise RequestError(f"{flag(name)} belongs to --output")
        if self.images_per_file is not None and self.images_per_file < 1:
            raise RequestError(f"--images-per-file must be at least 1, not {self.images_per_file}")
        if not 0 <= self.val_fraction < 1:
            raise RequestError(f"--val-fraction must be at least 0 and less than 1, not {self.val_fraction}")
        if self.min_area < 0:
            raise RequestError(f"--min-area must be at least 0, not {self.min_area}")
        if not 0 <= self.simplify_px < math.inf:
            raise RequestError(f"--simplify-px must be a number of at least 0, not {self.simplify_px}")
        return Shaping(self.split_components, self.min_area, self.simplify_px)

    def segmentation(self) -> Segmentation:
        """How COCO's masks are written."""
        if self.polygons:
            return "polygons"
        return "uncompressed" if self.uncompressed else "rle"


def export(options: ExportOptions, console: Console) -> None:
    """Write the rows in the requested formats."""
    shaping = options.shaping()
    labels = open_labels(options.labels, "--labels")
    check_class_names(labels.class_names)
    tally, exported = Tally(), 0
    formats = requested_formats(options, labels, tally)
    note_unfinished(labels, console)
    with ExitStack() as stack:
        writers = [stack.enter_context(files) for files in formats]
        for images in labelled_images(labels, shaping, tally):
            for write in writers:
                write(images)
            exported += len(images)
    targets = ", ".join(address for name in FORMATS if (address := getattr(options, name)))
    console.print(f"Exported {exported:,} images: {targets}", soft_wrap=True)
    for note in notes(tally, options):
        console.print(note, soft_wrap=True)


def requested_formats(options: ExportOptions, labels: Labels, tally: Tally) -> list[AbstractContextManager[Write]]:
    """The formats, ready to be opened. Nothing is written yet.

    Raises:
        RequestError: a target exists already, lies in the labels, is another one's, or cannot be used.
    """
    targets = check_targets(options, labels)
    images = open_location(options.images, "--images") if options.images is not None else None
    names, categories = labels.class_names, labels.manifest["categories"]
    address = str(labels.manifest.get("input", {}).get("address"))
    formats: list[AbstractContextManager[Write]] = []
    for name, target in targets.items():
        match name:
            case "output":
                files = json_targets(target, options.images_per_file, options.overwrite)
                style = options.segmentation(), options.results, labels.manifest, "png" in targets
                formats.append(coco_files(files, options.images_per_file or sys.maxsize, *style))
            case "png":
                formats.append(label_maps(target, categories))
            case "yolo":
                formats.append(yolo(target, names, options.val_fraction, images))
            case "voc":
                check_classes(names)
                formats.append(voc(target, names, options.val_fraction, tally))
            case "label_studio":
                formats.append(label_studio(target, names, images, model_name(labels)))
            case "cvat":
                formats.append(cvat(target, names, address))
            case "labelme":
                formats.append(labelme(target, names, images))
    return formats


def check_targets(options: ExportOptions, labels: Labels) -> dict[str, Location]:
    """The targets by option. Raises RequestError as `requested_formats` does."""
    targets: dict[str, Location] = {}
    for name in FORMATS:
        if address := getattr(options, name):
            check = check_file_target if name in FILES else check_target
            target = check(flag(name), address, options.overwrite, labels)
            for other in targets.values():
                if target == other:
                    raise RequestError(f"{other.flag} and {target} are the same place: give each format its own")
            targets[name] = target
    if "label_studio" in targets:
        config = config_place(targets["label_studio"])
        if config.fs.exists(config.path) and not options.overwrite:
            raise exists_already(config)
    return targets


def json_targets(target: Location, images_per_file: int | None, overwrite: bool) -> Iterator[Location]:
    """The file to write, or NAME-00000.json and so on; older ones of these are removed.

    Raises:
        RequestError: such a file exists already.
    """
    if images_per_file is None:
        return iter([target])
    stem, ending = posixpath.splitext(target.path)
    numbered = re.compile(rf"-\d{{5,}}{re.escape(ending)}")
    older = [path for path in target.fs.glob(f"{stem}-*{ending}") if numbered.fullmatch(path[len(stem) :])]
    if older and not overwrite:
        raise exists_already(replace(target, path=older[0]))
    for path in older:
        target.fs.rm_file(path)
    return (replace(target, path=f"{stem}-{number:05}{ending}") for number in count())


def check_class_names(names: list[str]) -> None:
    """Raises RequestError: a name has characters that are no text."""
    for name in names:
        if not isinstance(name, str) or UNPRINTABLE.search(name):
            raise RequestError(f"the class {name!r} cannot be exported: its name has characters that are no text")


def model_name(labels: Labels) -> str:
    """What made the labels, as Label Studio shows it."""
    clip = labels.manifest.get("models", {}).get("clip", {}).get("name")
    return f"CLIPer {clip}" if clip else "CLIPer"


def notes(tally: Tally, options: ExportOptions) -> Iterator[str]:
    """What is left out or named otherwise, in sentences."""
    if tally.rows:
        kinds = ", ".join(f"{status} {rows:,}" for status, rows in sorted(tally.rows.items()))
        yield f"Left out: {sum(tally.rows.values()):,} failed rows ({kinds})"
    if tally.components:
        masks = f", and so {tally.masks:,} whole masks" if tally.masks else ""
        yield f"Left out: {tally.components:,} components of fewer than {options.min_area:,} pixels{masks}"
    if tally.objects:
        yield f"Left out of --voc's object masks: {tally.objects:,} objects beyond the {MOST} that an image can have"
    if tally.renamed and (options.yolo or options.voc):
        yield (
            f"Named a.png.png where a.jpg and a.png are in one folder: {tally.renamed:,} images. "
            "--yolo and --voc name the files of an image after it without its ending; rename these images likewise"
        )


main = partial(run_job, ExportOptions, export, __doc__)

if __name__ == "__main__":
    sys.exit(main())
