"""Write a page to look at what a labelling job has written: a gallery with overlays, scores, classes and failures.

The page is a single HTML file that needs no network. It can be opened from a disk, sent by mail or printed.
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

import tyro
from rich.console import Console

from cluster.output.files import written_whole
from cluster.output.folder import Output
from cluster.output.rows import Labels, open_labels
from cluster.storage import STORAGE_ERRORS, Location, storage_problem
from jobs.common.exit_codes import run_to_exit_code
from jobs.common.targets import check_file_target, note_unfinished
from jobs.page.counts import Tally
from jobs.page.images import open_images, read_pictures
from jobs.page.page import make_thumbnail, render_page
from jobs.page.samples import Candidates, read_rows
from schemas.errors import RequestError

LARGEST_THUMBNAIL_PX = 2048
MOST_PICTURES = 2000


@dataclass(frozen=True)
class ReportOptions:
    """Options of the report."""

    labels: str
    """Output folder of the labelling job, finished or not: a local path or a URL."""
    output: str
    """HTML file to write; one that is there is replaced."""
    images: str | None = None
    """The pictures: the job's --input, wherever it is now (default: where the rows say the pictures are)."""
    pictures: int = 60
    """Pictures in the gallery."""
    thumbnail_px: int = 320
    """Longer side of the gallery's pictures in pixels; decides on the page's size."""
    seed: int = 0
    """Another number chooses other pictures, of those that are not the best of their class."""

    def check(self) -> None:
        """Raises RequestError: a number makes no sense."""
        if not 0 <= self.pictures <= MOST_PICTURES:
            raise RequestError(f"--pictures must be between 0 and {MOST_PICTURES}, not {self.pictures}")
        if not 16 <= self.thumbnail_px <= LARGEST_THUMBNAIL_PX:
            raise RequestError(f"--thumbnail-px must be between 16 and {LARGEST_THUMBNAIL_PX}, not {self.thumbnail_px}")
        if self.seed < 0:
            raise RequestError(f"--seed must be at least 0, not {self.seed}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code: 0 done, 1 failed, 2 wrong request."""
    options = tyro.cli(ReportOptions, args=arguments, description=__doc__)
    return run_to_exit_code(lambda: report(options, Console()), Console(stderr=True))


def report(options: ReportOptions, console: Console) -> None:
    """From the labels to the page."""
    options.check()
    labels = open_labels(options.labels, "--labels")
    if not labels.paths:
        raise RequestError(f"--labels {options.labels} has no rows: wait until the labelling job has written some")
    images = open_images(options.images) if options.images else None
    target = check_file_target("--output", options.output, overwrite=True)
    with contextlib.ExitStack() as stack:
        file = open_page(target, options.output, stack)
        note_unfinished(labels, console)
        page, shown, left_out = make_page(options, labels, images)
        file.write(page)
    missing = f" ({left_out} can no longer be read)" if left_out else ""
    console.print(
        f"{target.url}: {shown} pictures{missing}, {len(page) / 1e6:.1f} MB", highlight=False, markup=False,
        soft_wrap=True,
    )  # fmt: skip


def open_page(target: Location, address: str, stack: contextlib.ExitStack) -> IO[bytes]:
    """The page's file; opened before the work, so that a wrong address shows at once.

    Raises:
        RequestError: it cannot be written.
    """
    try:
        return stack.enter_context(written_whole(target))
    except STORAGE_ERRORS as error:
        raise RequestError(f"--output {address} cannot be written: {storage_problem(error)}") from error


def make_page(options: ReportOptions, labels: Labels, images: Location | None) -> tuple[bytes, int, int]:
    """Returns the page, and how many pictures are in it and how many were left out.

    Raises:
        RequestError: the rows do not fit the manifest.
        OSError: the storage failed.
    """
    tally, candidates = Tally(len(labels.class_names)), Candidates(options.pictures, options.seed)
    for portion in tally.count(labels):
        candidates.add(portion)
    rows = read_rows(labels, tally.file_starts, candidates.choose(tally.images_by_class))
    make = partial(make_thumbnail, longer_side_px=options.thumbnail_px)
    thumbnails, unreadable = read_pictures(rows, images, make)
    summary = Output(labels.location).read_json("summary.json") or {}
    page = render_page(labels, summary, tally, thumbnails, unreadable)
    return page.encode("utf-8", "backslashreplace"), len(thumbnails), len(unreadable)


if __name__ == "__main__":
    sys.exit(main())
