"""Compare the speed of the package with the literal transcription of the method, at full size with random weights.

Run it from the repository root: ``python -m benchmarks.speed --device cpu --clip ViT-B-16``.
"""

import csv
import json
import platform
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Case, measure

VERSIONS = ("torch", "diffusers", "open_clip_torch")


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure. Commas separate list items. Each combination is measured in its own process."""

    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of the models."""
    clip: str = "ViT-L-14"
    """open_clip architectures, each with Stable Diffusion 2.1-base and random weights; or demo."""
    variants: str = "literal,fast"
    """literal (the transcription of the method), fast (the package), or both."""
    compensation: str = "product,none"
    """With and without fine-grained compensation."""
    batch_sizes: str = "1"
    """Images per batch. The literal transcription processes them one by one."""
    classes: str = "21"
    """Sizes of the vocabulary."""
    precision: Literal["bf16", "fp16", "fp32"] = "fp32"
    """Data type of weights and activations."""
    height_px: int = 375
    """Height of the images."""
    width_px: int = 500
    """Width of the images."""
    repeats: int = 3
    """Timed runs of each combination. The fastest counts."""
    json: Path | None = None
    """JSON file for the rows."""
    results: Path | None = None
    """CSV file to append the rows to, such as benchmarks/results.csv."""


def main(options: BenchmarkOptions) -> None:
    """Measure every combination, each variant in its own process. Print tables and write the rows."""
    console = Console()
    if not console.is_terminal:
        console.width = 100
    rows: list[dict[str, Any]] = []
    size = (options.height_px, options.width_px, options.repeats)
    axes = (options.clip, options.compensation, options.classes, options.batch_sizes)
    for clip, compensation, classes, batch_size in product(*(axis.split(",") for axis in axes)):
        case = Case(options.device, clip, compensation, int(batch_size), int(classes), options.precision)
        found: list[dict[str, Any]] = []
        labels: dict[str, np.ndarray] = {}
        for variant in ("literal", "fast"):  # the literal transcription first, because the package is compared with it
            if variant in options.variants.split(","):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its own peak memory
                    measured, labels[variant] = process.submit(measure, case, variant, *size).result()
                same = float((labels[variant] == labels["literal"]).mean()) if "literal" in labels else None
                found += [row | {"agreement": same} for row in measured]
        show(found, console)
        rows += found
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.results is not None:
        append(options.results, rows)


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table of one combination, with ratios to the literal transcription."""
    title = "{clip} · compensation {compensation} · batch {batch_size} · {classes} classes · {precision} · {device}"
    table = Table(title=title.format(**rows[0]), title_justify="left", caption="fastest run", min_width=70)
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


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, with date, commit, machine and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    origin = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": machine,
        "versions": " ".join(f"{name}={version(name)}" for name in VERSIONS),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*origin, *rows[0]])
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(origin | row for row in rows)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkOptions, description=__doc__))
