"""How fast is it? The literal transcription of the method against the package, at full size with random weights."""

import csv
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the literal transcription is among the tests, which are not installed

from cliper.models import DEMO  # noqa: E402 (after the path)
from jobs.measure import Case, Measurement, measure, peak_memory_gb  # noqa: E402
from jobs.measure_pipeline import measure_pipeline  # noqa: E402

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
    pipeline: int = 0
    """Measure the Ray job instead, over so many pictures and again over twice as many: the whole job with the demo
    models, its data plane with the model's time excluded, and the demo models without Ray."""
    json: Path | None = None
    """File for the rows."""
    results: Path | None = None
    """CSV file that the rows are appended to, such as benchmarks/results.csv."""

    def cases(self) -> Iterator[Case]:
        """Every combination; the literal transcription first, so that the others can be compared with it."""
        ordered = [variant for variant in ("literal", "fast") if variant in self.variants.split(",")]
        for clip in self.clip.split(","):
            for compensation in self.compensation.split(","):
                for classes in map(int, self.classes.split(",")):
                    for batch_size in map(int, self.batch_sizes.split(",")):
                        for variant in ordered:
                            yield Case(
                                variant, self.device, clip, compensation, batch_size, classes, self.precision,
                                self.height_px, self.width_px, self.repeats,
                            )  # fmt: skip


def main(options: BenchmarkOptions) -> None:
    """Measure, print a table, and write the rows."""
    console = Console()
    rows = measure_job(options, console) if options.pipeline else measure_cases(options, console)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.results is not None:
        append(options.results, rows)


def measure_cases(options: BenchmarkOptions, console: Console) -> list[dict[str, Any]]:
    """Every combination in a process of its own."""
    rows: list[dict[str, Any]] = []
    literal: dict[Case, Measurement] = {}
    for case in options.cases():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its own peak of memory
            measurement = process.submit(measure, case).result()
        same = replace(case, variant="literal")
        if case.variant == "literal":
            literal[case] = measurement
        agreement = measurement.agreement(literal[same]) if same in literal else None
        rows += [row | {"agreement": agreement} for row in measurement.rows(case)]
        show(rows, console)
    return rows


def measure_job(options: BenchmarkOptions, console: Console) -> list[dict[str, Any]]:
    """The Ray job, one row for each part."""
    classes = int(options.classes)
    rates = measure_pipeline(options.pipeline, classes, options.height_px, options.width_px, console)
    case = next(options.cases())
    case = replace(case, variant="fast", clip=DEMO, compensation="product", classes=classes, precision="fp32")
    seconds = {part: 1 / rate for part, rate in rates.items()}
    peak = peak_memory_gb(torch.device(options.device))
    rows = Measurement(seconds, 0.0, peak, np.zeros(0)).rows(case)
    rows = [row | {"agreement": None} for row in rows]
    show(rows, console)
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print what has been measured so far, with the ratio to the literal transcription."""
    table = Table(title="ms per image, fastest run")
    for column in (
        "clip",
        "compensation",
        "batch",
        "classes",
        "variant",
        "stage",
        "ms",
        "images/s",
        "ratio",
        "of floor",
    ):
        table.add_column(column, justify="right" if column in {"ms", "images/s", "ratio", "of floor"} else "left")
    table.add_column("GB", justify="right")
    table.add_column("agreement", justify="right")
    case_of = ("clip", "compensation", "batch_size", "classes")
    slow = {
        (*(row[name] for name in case_of), row["stage"]): row["ms_per_image"]
        for row in rows
        if row["variant"] == "literal"
    }
    for row in rows:
        before = slow.get((*(row[name] for name in case_of), row["stage"]))
        table.add_row(
            *(str(row[name]) for name in (*case_of, "variant", "stage")),
            f"{row['ms_per_image']:.2f}",
            f"{row['images_per_second']:.2f}",
            f"{before / row['ms_per_image']:.1f}" if before else "",
            f"{row['share_of_floor']:.0%}" if row["share_of_floor"] else "",
            f"{row['peak_memory_gb']:.2f}",
            f"{row['agreement']:.4f}" if row["agreement"] is not None else "",
        )
    console.print(table)


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
