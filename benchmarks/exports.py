"""Measure seconds and peak memory of filtering and exporting, on synthetic rows with drawn masks.

Run it from the repository root: ``python -m benchmarks.exports``.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cluster.output.folder import Output
from cluster.storage import open_location
from schemas.manifest import Manifest, coco_categories
from schemas.rows import ROW_SCHEMA, Status
from schemas.runs import annotations_from_labels

CLASSES = 20
PATTERNS = 200
"""Number of different label maps. The rows share them."""
HEIGHT, WIDTH, BLOBS = 480, 640, 12
ROWS_PER_FILE = 1000
CONDITIONS = ["--require", "class 3>0.6", "--require-any", "class 5>0.5,class 7>0.5", "--min-area", "class 3=0.02"]


def main(filter_rows: int = 1_000_000, export_rows: tuple[int, ...] = (50_000, 200_000)) -> None:
    """Print seconds and peak memory of each job.

    Args:
        filter_rows: Number of rows to filter by three conditions.
        export_rows: Numbers of rows to export as COCO, one measurement each.
    """
    exports = [("export", rows, ["--overwrite"]) for rows in export_rows]
    with tempfile.TemporaryDirectory() as folder:
        for job, rows, flags in [("filter", filter_rows, CONDITIONS), *exports]:
            labels, output = Path(folder) / "labels", str(Path(folder) / job)
            write_labels(labels, rows)
            started = time.monotonic()
            command = [sys.executable, "-m", f"jobs.{job}", "--labels", str(labels), "--output", output, *flags]
            process = subprocess.Popen(command)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds, peak_mb = time.monotonic() - started, usage.ru_maxrss * 1024 / 1e6
            print(f"{job} {rows:,} rows: {seconds:.1f} s, {peak_mb:,.0f} MB, exit code {process.returncode}")


def write_labels(folder: Path, rows: int) -> None:
    """Write an output folder. Images with neighbouring ids are in different files."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "rows").mkdir(parents=True)
    categories = coco_categories([f"class {number}" for number in range(1, CLASSES + 1)])
    manifest = Manifest({"input": {"address": "none"}}, {"categories": categories})
    (folder / "manifest.json").write_text(manifest.to_json())
    rng = np.random.default_rng(0)
    patterns = draw_patterns(rng)
    for start in range(0, rows, ROWS_PER_FILE):
        numbers = np.arange(start, min(start + ROWS_PER_FILE, rows)) * 7919 % rows
        count = len(numbers)
        shards = [f"{number // ROWS_PER_FILE:06}.tar" for number in numbers]
        names = [f"{number:09}.jpg" for number in numbers]
        columns = {name: [None] * count for name in ROW_SCHEMA.names} | {
            "image_id": [f"{shard}/{name}" for shard, name in zip(shards, names, strict=True)],
            "uri": [f"tar://{name}::s3://bucket/{shard}" for shard, name in zip(shards, names, strict=True)],
            "shard": shards,
            "width": np.full(count, WIDTH),
            "height": np.full(count, HEIGHT),
            "status": [Status.OK.value] * count,
            "class_scores": list(rng.random((count, CLASSES), dtype=np.float32)),
            "annotations": patterns.take(pa.array(rng.integers(0, PATTERNS, count))),
        }
        schema = ROW_SCHEMA.with_metadata(manifest.parquet_metadata())
        pq.write_table(pa.Table.from_pydict(columns, schema), folder / f"rows/run_{start:09}-0.parquet")
    output = Output(open_location(str(folder), "--labels"))
    output.finish(output.data_files())


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


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
