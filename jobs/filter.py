"""Keep the pictures in which classes are present or absent: as a table, as copied tar shards, or look at scores first.

Conditions: a class name, one of > >= < <=, and a number, in quotes: "dog>0.6". Names may hold spaces and commas. Scores
are compared as 32-bit floats. SQL may use every column of the rows but the masks, and score('dog') and area('dog'),
which is the share of the picture that the class covers: --where "score('dog') > 2 * score('cat') AND width >= 640".
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.console import Console
from tyro.conf import UseAppendAction

from cluster.output.rows import open_labels
from jobs.common.exit_codes import run_to_exit_code
from jobs.common.targets import check_file_target, note_unfinished
from jobs.filtering.conditions import Conditions, parse_area, parse_condition, parse_conditions
from jobs.filtering.copies import check_copy, copy_kept
from jobs.filtering.selection import select_pictures
from jobs.filtering.statistics import check_stats, show_stats
from schemas.errors import RequestError

Repeated = UseAppendAction[tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class FilterOptions:
    """Options of the filter. Flags with conditions take several values and may be repeated."""

    labels: str
    """Output folder of the labelling job: a local path or a URL."""
    output: str | None = None
    """Parquet file to write: image_id, uri, width, height and a column "score: CLASS" for every class mentioned."""
    require: Repeated = ()
    """Conditions that all hold: "dog>0.6"."""
    require_any: Repeated = ()
    """Conditions of which one holds, commas between them: "car>0.5,truck>0.5". Repeated: one of each."""
    exclude: Repeated = ()
    """Conditions of which none holds: "person>0.3"."""
    min_area: Repeated = ()
    """CLASS=SHARE: the class covers at least this share of the picture, such as dog=0.02."""
    where: str | None = None
    """SQL that holds besides."""
    copy_to: str | None = None
    """Folder or prefix for the kept pictures, copied byte for byte into tar shards. The same command continues."""
    pictures_per_shard: int = 1000
    """Pictures in a tar shard of --copy-to, at most."""
    address: str | None = None
    """Ray cluster that copies (default: RAY_ADDRESS, else Ray is started on this machine)."""
    stats: bool = False
    """Show how the scores of all pictures spread, to choose thresholds by."""
    classes: tuple[str, ...] = ()
    """Classes that --stats shows (default: the 20 most frequent)."""
    truth: str | None = None
    """What is really in the pictures, for --stats: a Parquet table with image_id and a list column classes, or a
    Parquet or CSV table with image_id and class (empty for a picture without any)."""
    overwrite: bool = False
    """Replace what is at --output or --copy-to."""

    def conditions(self) -> Conditions:
        """Raises RequestError: a condition cannot be understood."""
        required = [parse_condition("--require", text) for text in flat(self.require)]
        required += [parse_area("--min-area", text) for text in flat(self.min_area)]
        return Conditions(
            require=tuple(required),
            require_any=tuple(parse_conditions("--require-any", text) for text in flat(self.require_any)),
            exclude=tuple(parse_condition("--exclude", text) for text in flat(self.exclude)),
            where=self.where,
        )


def flat(values: tuple[tuple[str, ...], ...]) -> list[str]:
    return [value for group in values for value in group]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code: 0 done, 1 failed, 2 wrong request."""
    options = tyro.cli(FilterOptions, args=arguments, description=__doc__)
    return run_to_exit_code(lambda: filter_pictures(options, Console()), Console(stderr=True))


def filter_pictures(options: FilterOptions, console: Console) -> None:
    """From the request to what was asked for: statistics, a table, copies."""
    conditions = options.conditions()
    if not (options.output or options.copy_to or options.stats):
        raise RequestError("give --output, --copy-to or --stats")
    labels = open_labels(options.labels, "--labels")
    conditions.check("condition", labels.class_names)
    check_stats(options.stats, options.classes, options.truth, labels)
    target = check_file_target("--output", options.output, options.overwrite) if options.output else None
    if options.copy_to:
        check_copy(labels, options.pictures_per_shard)
    note_unfinished(labels, console)
    if options.stats:
        show_stats(labels, options.classes, options.truth, console)
    if target is None and options.copy_to is None:
        return
    selection = select_pictures(labels, conditions, target)
    console.print(f"Kept {selection.kept:,} of {selection.considered:,} pictures.", highlight=False)
    if options.copy_to:
        copy_kept(
            selection, labels, options.copy_to, options.pictures_per_shard, options.address, options.overwrite, console
        )


if __name__ == "__main__":
    sys.exit(main())
