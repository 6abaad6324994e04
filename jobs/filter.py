"""Select images by the classes that are present or absent. Write a table, copy the images, or show score statistics.

A condition is a class name, which must have a mask: dog. Or it is a class name, one of > >= < <= and a number, in
quotes: "dog>0.6". Names may contain spaces and commas. Scores are compared as 32-bit floats. SQL may use every column
of the rows except the masks. It may also call score('dog'), probability('dog') (rows of preset open) and area('dog'),
the share of the image that the class covers:
--where "score('dog') > 2 * score('cat') AND width >= 640".

Examples:
  cliper filter --labels labels --require dog --exclude person --output kept.parquet
  cliper filter --labels labels --where "score('dog') > 2 * score('cat')" --copy-to s3://bucket/kept
"""

import sys
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import ClassVar, Literal

from rich.console import Console
from tyro.conf import UseAppendAction

from cliper.files import parse_text
from cluster.output.rows import open_labels
from jobs.common.exit_codes import run_job
from jobs.common.targets import check_file_target, note_unfinished
from jobs.filtering.conditions import Conditions, check_class, parse_area, parse_condition, parse_conditions
from jobs.filtering.selection import select_images
from jobs.filtering.statistics import show_stats
from schemas.errors import RequestError
from schemas.image_ids import parse_image_ids

Repeated = UseAppendAction[tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class FilterOptions:
    """Options of the filter. Flags for conditions take several values and may be repeated."""

    basic: ClassVar = (
        "labels", "require", "require_any", "exclude", "exclude_ids", "where", "output", "copy_to", "stats",
        "overwrite",
    )  # fmt: skip

    labels: str
    """Output folder of the labelling job: a local path or a URL."""
    output: str | None = None
    """Parquet file to write: image_id, uri, width, height and a column "score: CLASS" for each class mentioned."""
    require: Repeated = ()
    """Conditions that must all hold: dog, or "dog>0.6"."""
    require_any: Repeated = ()
    """Groups of conditions with commas between them: "car>0.5,truck>0.5". One condition of each group must hold."""
    exclude: Repeated = ()
    """Conditions that must not hold: person, or "person>0.3"."""
    min_area: Repeated = ()
    """CLASS=SHARE: the class must cover at least this share of the image, such as dog=0.02."""
    where: str | None = None
    """Additional SQL condition."""
    exclude_ids: str | None = None
    """File of image ids to leave out, one per line, such as the marks that a report downloads."""
    copy_to: str | None = None
    """Folder or prefix for the kept images, copied byte for byte with their siblings (7.txt beside 7.jpg) or the other
    columns of their table (as 7.json). The same command resumes."""
    copy_as: Literal["tar", "folder"] = "tar"
    """Copy into tar shards, or as files into the folder images."""
    copy_labels: Literal["json", "png", "none"] = "json"
    """Labels beside the copies: 7.labels.json with COCO annotations, or 7.labels.png with a label map."""
    pictures_per_shard: int = 1000
    """Maximum number of images in a tar shard."""
    address: str | None = None
    """Ray cluster for copying (default: RAY_ADDRESS, else Ray is started on this machine)."""
    stats: bool = False
    """Show histograms of the scores of all images, to choose thresholds by."""
    classes: tuple[str, ...] = ()
    """Classes for --stats (default: the 20 most frequent)."""
    truth: str | None = None
    """Ground truth for --stats: a Parquet table with image_id and a list column classes, or a Parquet or CSV table
    with image_id and class (empty for an image without classes)."""
    overwrite: bool = False
    """Replace existing files at --output or --copy-to."""

    def conditions(self) -> Conditions:
        """Raises RequestError: a condition or the file of ids cannot be read."""
        required = [parse_condition("--require", text) for text in chain(*self.require)]
        required += [parse_area("--min-area", text) for text in chain(*self.min_area)]
        return Conditions(
            require=tuple(required),
            require_any=tuple(parse_conditions("--require-any", text) for text in chain(*self.require_any)),
            exclude=tuple(parse_condition("--exclude", text) for text in chain(*self.exclude)),
            where=self.where,
            exclude_ids=parse_text("--exclude-ids", self.exclude_ids, parse_image_ids) if self.exclude_ids else (),
        )


def filter_images(options: FilterOptions, console: Console) -> None:
    """Show statistics, write a table and copy images, as requested."""
    if options.copy_to:
        from jobs.filtering.copies import CopyRequest, check_copy, copy_kept  # Ray takes seconds; --help must not wait

        copies = CopyRequest(
            options.copy_to, options.copy_as, options.copy_labels, options.pictures_per_shard, options.address,
            options.overwrite,
        )  # fmt: skip
    conditions = options.conditions()
    if not (options.output or options.copy_to or options.stats):
        raise RequestError("give --output, --copy-to or --stats")
    labels = open_labels(options.labels, "--labels")
    for name in conditions.class_names:
        check_class("condition", name, labels.class_names)
    if not options.stats and (options.classes or options.truth):
        raise RequestError("--classes and --truth belong to --stats")
    for name in options.classes:
        check_class("--classes", name, labels.class_names)
    target = check_file_target("--output", options.output, options.overwrite, labels) if options.output else None
    if options.copy_to:
        check_copy(labels, copies)
    note_unfinished(labels, console)
    if options.stats:
        show_stats(labels, options.classes, options.truth, console)
    if target is None and options.copy_to is None:
        return
    selection = select_images(labels, conditions, target)
    console.print(f"Kept {selection.kept:,} of {selection.considered:,} images.")
    if selection.unknown_ids:
        listed = len(conditions.exclude_ids)
        console.print(f"{selection.unknown_ids:,} of the {listed:,} ids in --exclude-ids are not of labelled images.")
    if options.copy_to:
        copy_kept(selection, labels, copies, console)


main = partial(run_job, FilterOptions, filter_images, __doc__)

if __name__ == "__main__":
    sys.exit(main())
