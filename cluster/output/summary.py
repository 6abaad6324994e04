"""The content of the output, counted from its rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.table import Table

from cliper.preprocess import InputSpec
from cluster.corpus.sources import passed_over_sentence
from cluster.output.folder import Output
from cluster.output.rows import map_rows_files
from schemas.rows import Status

MOST_FREQUENT = 10
MOST_WORDS = 20
WORD_HINTS = {
    "never_found": "Found nowhere (other words, or a lower presence threshold, may help: docs/words.md)",
    "always_found": "Found in every image (the word may be too general)",
}
COUNTED_COLUMNS = ["status", "passed_over", "width", "height", "unknown_tags", "annotations.list.element.category_id"]


@dataclass
class Counts:
    """Number of images by status, number of images in which each category is present, members of shards that are no
    images, by ending, tags that are no class, and panoramas that were seen on a coarser grid
    (`cliper.preprocess.InputSpec.is_coarser`)."""

    by_status: Counter[str] = field(default_factory=Counter)
    by_category: Counter[int] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    unknown_tags: Counter[str] = field(default_factory=Counter)
    coarser: int = 0

    @property
    def images(self) -> int:
        return self.by_status.total()

    @property
    def ok(self) -> int:
        return self.by_status[Status.OK]


def count_rows(output: Output, files: Iterable[str], inputs: InputSpec) -> Counts:
    """Read the columns of rows files that are counted; the masks are not.

    Args:
        output: the output.
        files: paths of its rows files.
        inputs: how images were prepared.
    """
    counts = Counts()
    for _, single in map_rows_files(output, COUNTED_COLUMNS, partial(count_table, inputs=inputs), list(files)):
        counts.by_status += single.by_status
        counts.by_category += single.by_category
        counts.passed_over += single.passed_over
        counts.unknown_tags += single.unknown_tags
        counts.coarser += single.coarser
    return counts


def count_table(table: pa.Table, inputs: InputSpec) -> Counts:
    categories = pc.struct_field(pc.list_flatten(table["annotations"]), "category_id")
    passed_over: Counter[str] = Counter()
    for members in table["passed_over"].drop_null().to_pylist():
        passed_over.update({member["ending"]: member["files"] for member in members})
    statuses, coarser = Counter(table["status"].to_pylist()), coarser_images(table, inputs)
    unknown_tags = Counter(pc.list_flatten(table["unknown_tags"]).to_pylist())
    return Counts(statuses, Counter(categories.to_pylist()), passed_over, unknown_tags, coarser)


def coarser_images(table: pa.Table, inputs: InputSpec) -> int:
    """The number of labelled images that were seen on a coarser grid than others."""
    labelled = table.filter(pc.equal(table["status"], Status.OK.value))
    found = labelled.group_by(["height", "width"]).aggregate([([], "count_all")]).to_pylist()
    return sum(size["count_all"] for size in found if inputs.is_coarser((size["height"], size["width"])))


def coarser_sentence(images: int) -> str:
    return (
        f"{images:,} panoramas were seen on a coarser grid than the other images: their patches do not fit into the "
        f"memory (cut them, or give a smaller --shorter-side-px)."
    )


def summary_document(
    counts: Counts, class_names: list[str], new_images: int, seconds: float, per_second: float, bytes_read: int,
    notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    """The content of ``summary.json``: counts over the whole output, then the last run's images, time, input, notes."""
    found = {name: counts.by_category[index] for index, name in enumerate(class_names, start=1)}
    return {
        "images": counts.images,
        "ok": counts.ok,
        "failed": counts.images - counts.ok,
        "passed_over": dict(counts.passed_over.most_common()),
        "unknown_tags": dict(counts.unknown_tags.most_common(MOST_WORDS)),
        "coarser_grid": counts.coarser,
        "by_status": dict(counts.by_status.most_common()),
        "images_by_class": {class_names[category - 1]: n for category, n in counts.by_category.most_common()},
        "never_found": [name for name, images in found.items() if not images],
        "always_found": [name for name, images in found.items() if images == counts.ok and counts.ok > 1],
        "new_images": new_images,
        "seconds": round(seconds, 3),
        "images_per_second": round(per_second, 3),
        "bytes_read": bytes_read,
        "notes": notes,
    }


def show_summary(summary: dict[str, Any], where: str, console: Console) -> None:
    """Print the summary as tables."""
    images = Table(title="Images", title_justify="left")
    images.add_column("status")
    images.add_column("images", justify="right")
    for status, count in summary["by_status"].items():
        images.add_row(status, f"{count:,}")
    images.add_section()
    images.add_row("all", f"{summary['images']:,}")

    classes = Table(title="Most frequent classes", title_justify="left")
    classes.add_column("class")
    classes.add_column("images", justify="right")
    for name, count in list(summary["images_by_class"].items())[:MOST_FREQUENT]:
        classes.add_row(name, f"{count:,}")

    new_images, seconds = summary["new_images"], summary["seconds"]
    speed = f", {summary['images_per_second']:.3g} a second after the start" if summary["images_per_second"] else ""
    console.print(Group(images, classes) if classes.row_count else images)
    if summary["passed_over"]:
        console.print(passed_over_sentence(summary["passed_over"]).capitalize())
    if summary["unknown_tags"]:
        listed = ", ".join(f"{tag} ({images:,})" for tag, images in summary["unknown_tags"].items())
        console.print(f"Tags that are no class of the vocabulary (images): {listed}", soft_wrap=True)
    if summary["coarser_grid"]:
        console.print(coarser_sentence(summary["coarser_grid"]), soft_wrap=True)
    for found, hint in WORD_HINTS.items():
        if words := summary[found]:
            listed = ", ".join(words[:MOST_WORDS]) + (
                f" and {len(words) - MOST_WORDS:,} more" * (len(words) > MOST_WORDS)
            )
            console.print(f"{hint}: {listed}", soft_wrap=True)
    for note in summary["notes"]:
        console.print(note, soft_wrap=True)
    console.print(f"Last run: {new_images:,} images in {seconds:,.1f} s{speed}")
    console.print(f"Output: {where}", soft_wrap=True)
