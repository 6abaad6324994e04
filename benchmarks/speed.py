"""How fast is it? The literal transcription of the method against the package, at full size with random weights."""

import csv
import json
import platform
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Case, Measurement, measure

ROOT = Path(__file__).parents[1]
VERSIONS = ("torch", "diffusers", "open_clip_torch")


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure. Lists are separated by commas; every combination is measured in a process of its own."""

    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the models run."""
    clip: str = "ViT-L-14"
    """open_clip architectures, each with Stable Diffusion 2.1-base, all with random weights; or demo."""
    variants: str = "literal,fast"
    """The literal transcription of the method, the package, or both."""
    compensation: str = "product,none"
    """With and without fine-grained compensation."""
    batch_sizes: str = "1"
    """Pictures at a time; the literal transcription takes one after the other."""
    classes: str = "21"
    """Sizes of the vocabulary."""
    precision: Literal["bf16", "fp16", "fp32"] = "fp32"
    """Number format of weights and activations."""
    height_px: int = 375
    """Height of the pictures."""
    width_px: int = 500
    """Width of the pictures."""
    repeats: int = 3
    """Timed runs of each combination; the fastest counts."""
    json: Path | None = None
    """File for the rows."""
    results: Path | None = None
    """CSV file that the rows are appended to, such as benchmarks/results.csv."""

    def ordered_variants(self) -> list[str]:
        """The literal transcription first, so that the other can be compared with it."""
        return [variant for variant in ("literal", "fast") if variant in self.variants.split(",")]

    def cases(self) -> Iterator[Case]:
        """Every combination, for the first variant."""
        first = self.ordered_variants()[0]
        for clip, compensation, classes, batch_size in product(
            self.clip.split(","), self.compensation.split(","), self.classes.split(","), self.batch_sizes.split(",")
        ):
            yield Case(
                first, self.device, clip, compensation, int(batch_size), int(classes), self.precision,
                self.height_px, self.width_px, self.repeats,
            )  # fmt: skip


def main(options: BenchmarkOptions) -> None:
    """Measure, print a table, and write the rows."""
    console = Console()
    if not console.is_terminal:
        console.width = 100
    rows = measure_cases(options, console)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.results is not None:
        append(options.results, rows)


def measure_cases(options: BenchmarkOptions, console: Console) -> list[dict[str, Any]]:
    """Every combination, each variant in a process of its own."""
    rows: list[dict[str, Any]] = []
    for case in options.cases():
        measured: dict[str, Measurement] = {}
        found = []
        for variant in options.ordered_variants():
            single = replace(case, variant=variant)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its own peak of memory
                measured[variant] = process.submit(measure, single).result()
            agreement = measured[variant].agreement(measured["literal"]) if "literal" in measured else None
            found += [row | {"agreement": agreement} for row in measured[variant].rows(single)]
        show(found, console)
        rows += found
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print one table a combination, with the ratio to the literal transcription."""
    table = Table(title=" · ".join(describe(rows[0])), title_justify="left", caption="fastest run", min_width=70)
    for column in ("variant", "stage", "ms/image", "images/s", "ratio", "of floor", "peak GB", "agreement"):
        table.add_column(column, justify="left" if column in {"variant", "stage"} else "right")
    slow = {row["stage"]: row["ms_per_image"] for row in rows if row["variant"] == "literal"}
    for row in rows:
        before = slow.get(row["stage"])
        table.add_row(
            row["variant"],
            row["stage"],
            f"{row['ms_per_image']:.2f}",
            f"{row['images_per_second']:.2f}",
            f"{before / row['ms_per_image']:.1f}" if before else "",
            f"{row['share_of_floor']:.0%}" if row["share_of_floor"] else "",
            f"{row['peak_memory_gb']:.2f}",
            f"{row['agreement']:.4f}" if row["agreement"] is not None else "",
        )
    console.print(table)


def describe(row: dict[str, Any]) -> Iterator[str]:
    """What the rows of one table have in common."""
    yield from (row["clip"], f"compensation {row['compensation']}", f"batch {row['batch_size']}")
    yield from (f"{row['classes']} classes", row["precision"], row["device"])


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to the collected results, with date, commit, machine and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    origin = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": machine,
        "versions": " ".join(f"{name}={version(name)}" for name in VERSIONS),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*origin, *rows[0]])
        if new:
            writer.writeheader()
        writer.writerows(origin | row for row in rows)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkOptions, description=__doc__))
