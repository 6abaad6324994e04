"""Write a page about the output of a labelling job: images with overlays, scores, classes and failures.

The page is a single HTML file that needs no network. It can be opened from a disk, sent by mail or printed. Its sliders
move the threshold of presence and leave out small masks. Outlines stay as labelled, because the rows hold no values per
pixel: label again, such as with --try, to see another --outline-threshold. --compare shows two runs side by side.

Examples:
  cliper report --labels s3://bucket/labels --images s3://bucket/shards --output s3://bucket/report.html
  cliper report --labels labels --compare labels-other --output comparison.html
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

from PIL import Image
from rich.console import Console

from cliper.files import STORAGE_ERRORS
from cluster.output.files import atomic_write
from cluster.output.folder import Output
from cluster.output.rows import Labels, open_labels
from cluster.storage import Location
from jobs.common.counts import ScoredRows, count_labels
from jobs.common.exit_codes import run_job
from jobs.common.targets import check_file_target, note_unfinished
from jobs.page.comparison import choose_images, differing_share, read_areas
from jobs.page.images import Row, Unreadable, open_images, read_images
from jobs.page.page import Run, make_sample, merge_classes, render_page
from jobs.page.samples import Samples, read_rows, rows_by_id
from schemas.errors import RequestError

MAX_THUMBNAIL_PX = 2048
MAX_IMAGES = 2000


@dataclass(frozen=True)
class ReportOptions:
    """Options of the report."""

    basic: ClassVar = ("labels", "output", "images", "compare", "pictures")

    labels: str
    """Output folder of the labelling job, finished or not: a local path or a URL."""
    output: str
    """HTML file to write. An existing file is replaced."""
    images: str | None = None
    """The images: the job's --input at its current place (default: the addresses in the rows)."""
    compare: str | None = None
    """Output folder of another labelling job: its labels are shown beside those of --labels. Classes are matched by
    name, images by image_id."""
    pictures: int = 60
    """Number of images on the page."""
    thumbnail_px: int = 640
    """Longer side of these images in pixels. It determines the size of the page: 60 photographs of 640 pixels are
    about 4 MB."""
    seed: int = 0
    """Seed of the random choice of images."""

    def check(self) -> None:
        """Raises RequestError: a number is out of range."""
        if not 0 <= self.pictures <= MAX_IMAGES:
            raise RequestError(f"--pictures must be between 0 and {MAX_IMAGES}, not {self.pictures}")
        if not 16 <= self.thumbnail_px <= MAX_THUMBNAIL_PX:
            raise RequestError(f"--thumbnail-px must be between 16 and {MAX_THUMBNAIL_PX}, not {self.thumbnail_px}")
        if self.seed < 0:
            raise RequestError(f"--seed must be at least 0, not {self.seed}")


class Content(NamedTuple):
    """What a page shows: the arguments of `render_page`."""

    runs: list[Run]
    samples: list[dict[str, Any]]
    unreadable: list[Unreadable]
    in_both: int = 0


def report(options: ReportOptions, console: Console) -> None:
    """Write the page."""
    options.check()
    runs = [labels_with_rows(options.labels, "--labels")]
    if options.compare is not None:
        runs.append(labels_with_rows(options.compare, "--compare"))
    images = open_images(options.images) if options.images else None
    target = check_file_target("--output", options.output, overwrite=True)
    with contextlib.ExitStack() as stack:
        try:  # before the work, so that a wrong address fails at once
            file = stack.enter_context(atomic_write(target))
        except STORAGE_ERRORS as error:
            raise target.refusal(error, "written") from error
        for labels in runs:
            note_unfinished(labels, console)
        content = sampled(runs[0], options, images) if len(runs) == 1 else compared(runs, options, images)
        page = render_page(*content).encode("utf-8", "backslashreplace")
        file.write(page)
    missing = f" ({len(content.unreadable)} cannot be shown)" if content.unreadable else ""
    said = f"{target.url}: {len(content.samples)} images{missing}, {len(page) / 1e6:.1f} MB"
    console.print(said, soft_wrap=True)


def labels_with_rows(address: str, flag: str) -> Labels:
    """Raises RequestError: there are no labels, or they have no rows yet."""
    labels = open_labels(address, flag)
    if not labels.paths:
        raise RequestError(f"{labels.location} has no rows: wait until the labelling job has written some")
    return labels


def counted(labels: Labels, visit: Callable[[ScoredRows], None] | None = None) -> Run:
    """A run with its counts. ``visit`` is called with each chunk of rows."""
    summary = Output(labels.location).read_json("summary.json") or {}
    return Run(labels, count_labels(labels, visit), summary)


def sampled(labels: Labels, options: ReportOptions, images: Location | None) -> Content:
    """Images of one run, so that every class is shown."""
    samples = Samples(options.pictures, options.seed)
    run = counted(labels, samples.add)
    rows = read_rows(labels, run.counts.file_starts, samples.choose(run.counts.images_by_class))

    def make(row: Row, image: Image.Image) -> Row:
        return make_sample([row], image, options.thumbnail_px)

    return Content([run], *read_images(rows, images, make, labels.image_column))


def compared(runs: Sequence[Labels], options: ReportOptions, images: Location | None) -> Content:
    """Images that two runs have, among them those whose labels differ most.

    Raises:
        RequestError: there is no such image.
    """
    counts = [counted(labels) for labels in runs]
    _, numbers = merge_classes(runs)
    areas = [read_areas(labels, own) for labels, own in zip(runs, numbers, strict=True)]
    image_ids, in_both = choose_images(areas[0], areas[1], options.pictures, options.seed)
    if not in_both:
        raise RequestError(
            f"{runs[1].location} has no image in common with {runs[0].location}: compare runs on one input"
        )
    by_id = [rows_by_id(labels, image_ids) for labels in runs]

    def make(row: Row, image: Image.Image) -> Row:
        rows = [row, by_id[1][row["image_id"]]]
        difference = differing_share(rows, numbers)
        return make_sample(rows, image, options.thumbnail_px) | {"difference": difference}

    pairs = [(by_id[0][image_id], by_id[1][image_id]) for image_id in image_ids]
    same_size = [one for one, other in pairs if (one["width"], one["height"]) == (other["width"], other["height"])]
    samples, unreadable = read_images(same_size, images, make, runs[0].image_column)
    changed = set(image_ids) - {row["image_id"] for row in same_size}
    unreadable += [Unreadable(image_id, "the runs saw it in different sizes") for image_id in sorted(changed)]
    return Content(counts, samples, unreadable, in_both)


main = partial(run_job, ReportOptions, report, __doc__)

if __name__ == "__main__":
    sys.exit(main())
