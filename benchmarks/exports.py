"""Measure seconds and peak memory of filtering and exporting, on synthetic rows with drawn masks.

Run it from the repository root: ``python -m benchmarks.exports``.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.console import Console

from schemas.manifest import METADATA_KEY, coco_categories
from schemas.rows import ROW_SCHEMA, Status
from schemas.runs import annotations_from_labels

CLASSES = 20
PATTERNS = 200
"""Number of different label maps. The rows share them."""
HEIGHT, WIDTH, BLOBS = 480, 640, 12
ROWS_PER_FILE = 1000
CONDITIONS = ["--require", "class 3>0.6", "--require-any", "class 5>0.5,class 7>0.5", "--min-area", "class 3=0.02"]


@dataclass(frozen=True)
class ExportsOptions:
    """What to measure."""

    filter_rows: int = 1_000_000
    """Number of rows to filter by three conditions."""
    export_rows: tuple[int, ...] = (50_000, 200_000)
    """Numbers of rows to export as COCO, one measurement each."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds and peak memory of each job."""
    options = tyro.cli(ExportsOptions, args=arguments, description=__doc__)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        labels, output = Path(folder) / "labels", Path(folder) / "output"
        write_labels(labels, options.filter_rows)
        report(console, "filter", options.filter_rows, labels, [*CONDITIONS, "--output", str(output)])
        for rows in options.export_rows:
            write_labels(labels, rows)
            report(console, "export", rows, labels, ["--output", str(output), "--overwrite"])


def report(console: Console, job: str, rows: int, labels: Path, flags: list[str]) -> None:
    """Run a job in its own process and print its time and memory."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", f"jobs.{job}", "--labels", str(labels), *flags])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, peak_mb = time.monotonic() - started, usage.ru_maxrss * 1024 / 1e6
    console.print(f"{job} {rows:,} rows: {seconds:.1f} s, {peak_mb:,.0f} MB, exit code {process.returncode}")


def write_labels(folder: Path, rows: int) -> None:
    """Write an output folder. Images with neighbouring ids are in different files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = [f"class {number}" for number in range(1, CLASSES + 1)]
    manifest = json.dumps({"fingerprint": "none", "categories": coco_categories(names), "input": {"address": "none"}})
    (folder / "manifest.json").write_text(manifest)
    schema = ROW_SCHEMA.with_metadata({METADATA_KEY: manifest.encode("ascii")})
    rng = np.random.default_rng(0)
    patterns = draw_patterns(rng)
    for start in range(0, rows, ROWS_PER_FILE):
        numbers = np.arange(start, min(start + ROWS_PER_FILE, rows)) * 7919 % rows
        pq.write_table(synthetic_rows(rng, numbers, patterns, schema), folder / f"run_{start:09}-0.parquet")
    (folder / "_SUCCESS").touch()


def draw_patterns(rng: np.random.Generator) -> pa.Array:
    """Annotations of label maps with overlapping discs of random classes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    patterns = []
    for _ in range(PATTERNS):
        labels = np.zeros((HEIGHT, WIDTH), np.int32)
        for _ in range(BLOBS):
            centre_y, centre_x, radius = rng.integers((0, 0, 20), (HEIGHT, WIDTH, 160))
            labels[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] = rng.integers(0, CLASSES + 1)
        patterns.append(annotations_from_labels(labels, rng.random(CLASSES)))
    return pa.array(patterns, ROW_SCHEMA.field("annotations").type)


def synthetic_rows(rng: np.random.Generator, numbers: np.ndarray, patterns: pa.Array, schema: pa.Schema) -> pa.Table:
    count = len(numbers)
    shards = [f"{number // ROWS_PER_FILE:06}.tar" for number in numbers]
    names = [f"{number:09}.jpg" for number in numbers]
    ids = [f"{shard}/{name}" for shard, name in zip(shards, names, strict=True)]
    offsets = np.arange(count + 1, dtype=np.int32) * CLASSES
    scores = pa.ListArray.from_arrays(offsets, pa.array(rng.random(count * CLASSES, dtype=np.float32)))
    columns = {
        "image_id": ids,
        "uri": [f"tar://{name}::s3://bucket/{shard}" for shard, name in zip(shards, names, strict=True)],
        "shard": shards,
        "shard_images": pa.nulls(count, pa.int32()),
        "width": np.full(count, WIDTH, np.int32),
        "height": np.full(count, HEIGHT, np.int32),
        "status": [Status.OK.value] * count,
        "error": pa.nulls(count, pa.string()),
        "class_scores": scores,
        "annotations": patterns.take(pa.array(rng.integers(0, PATTERNS, count))),
    }
    return pa.Table.from_pydict(columns, schema)


if __name__ == "__main__":
    main()
