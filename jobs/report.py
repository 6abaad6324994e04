"""Write a page about the output of a labelling job: images with overlays, scores, classes and failures.

The page is a single HTML file that needs no network. It can be opened from a disk, sent by mail or printed.

Examples:
  cliper report --labels labels --output report.html
  cliper report --labels s3://bucket/labels --images s3://bucket/shards --output s3://bucket/report.html
"""

import contextlib
import sys
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from rich.console import Console

from cliper.files import STORAGE_ERRORS
from cluster.options import Unset
from cluster.output.files import atomic_write
from cluster.output.folder import Output
from cluster.output.rows import open_labels
from jobs.common.counts import count_labels
from jobs.common.exit_codes import run_job
from jobs.common.targets import check_file_target, note_unfinished
from jobs.page.images import open_images, read_images
from jobs.page.page import make_thumbnail, render_page
from jobs.page.samples import Samples, read_rows
from schemas.errors import RequestError

MAX_THUMBNAIL_PX = 2048
MAX_IMAGES = 2000


@dataclass(frozen=True)
class ReportOptions:
    """Options of the report."""

    basic: ClassVar = ("labels", "output", "images", "pictures")
    labels: str
    """Output folder of the labelling job, finished or not: a local path or a URL."""
    output: str
    """HTML file to write. An existing file is replaced."""
    images: Unset[str] = None
    """The images: the job's --input at its current place (default: the addresses in the rows)."""
    pictures: int = 60
    """Number of images on the page."""
    thumbnail_px: int = 320
    """Longer side of these images in pixels. It determines the size of the page."""
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


def report(options: ReportOptions, console: Console) -> None:
    """Write the page."""
    options.check()
    labels = open_labels(options.labels, "--labels")
    if not labels.paths:
        raise RequestError(f"{labels.location} has no rows: wait until the labelling job has written some")
    images = open_images(options.images) if options.images else None
    target = check_file_target("--output", options.output, overwrite=True)
    with contextlib.ExitStack() as stack:
        try:  # before the work, so that a wrong address fails at once
            file = stack.enter_context(atomic_write(target))
        except STORAGE_ERRORS as error:
            raise target.refusal(error, "written") from error
        note_unfinished(labels, console)
        samples = Samples(options.pictures, options.seed)
        counts = count_labels(labels, samples.add)
        rows = read_rows(labels, counts.file_starts, samples.choose(counts.images_by_class))
        make = partial(make_thumbnail, longer_side_px=options.thumbnail_px)
        thumbnails, unreadable = read_images(rows, images, make, labels.manifest["input"].get("image_column"))
        summary = Output(labels.location).read_json("summary.json") or {}
        page = render_page(labels, summary, counts, thumbnails, unreadable).encode("utf-8", "backslashreplace")
        file.write(page)
    missing = f" ({len(unreadable)} can no longer be read)" if unreadable else ""
    said = f"{target.url}: {len(thumbnails)} images{missing}, {len(page) / 1e6:.1f} MB"
    console.print(said, soft_wrap=True)


main = partial(run_job, ReportOptions, report, __doc__)

if __name__ == "__main__":
    sys.exit(main())
