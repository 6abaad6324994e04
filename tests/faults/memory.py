"""Does memory stay flat? Many tiny images through the job, resident memory sampled all the while.

Writes docs/memory.csv and docs/memory.svg and prints the growth between a quarter and the end of the run.
"""

import contextlib
import csv
import io
import statistics
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from matplotlib.figure import Figure
from PIL import Image

from tests.faults.trials import command_line, start

SETTINGS = ["--clip", "demo", "--diffusion", "none", "--background", "none", "--shorter-side-px", "16"]
PER_SHARD, ROWS_PER_FILE = 1000, 500
PARTS = {"driver": "annotate.py", "actor": "Labeller", "Ray's servers": "raylet"}
"""Part of the job to a word in its command line; other processes below the driver are tasks."""


@dataclass(frozen=True)
class MemoryOptions:
    """How many images, and where the result goes."""

    images: int = 200_000
    """Tiny images."""
    interval_s: float = 5.0
    """Time between samples."""
    output: Path = Path("docs")
    """Folder for memory.csv and memory.svg."""


def write_corpus(folder: Path, count: int) -> None:
    """Tar shards of 16 x 16 px JPEGs."""
    folder.mkdir()
    for shard in range(-(-count // PER_SHARD)):
        with tarfile.open(folder / f"{shard:06}.tar", "w") as archive:
            for number in range(shard * PER_SHARD, min(count, (shard + 1) * PER_SHARD)):
                pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "JPEG")
                member = tarfile.TarInfo(f"{number:08}.jpg")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)


def resident_mb(driver: psutil.Process) -> dict[str, float]:
    """Memory of each part that is not shared with other processes; pages of the object store count for nobody."""
    sums = dict.fromkeys([*PARTS, "tasks"], 0.0)
    for process in (driver, *driver.children(recursive=True)):
        try:
            memory, words = process.memory_info(), command_line(process)
        except psutil.Error:
            continue
        part = next((part for part, word in PARTS.items() if word in words), "tasks")
        sums[part] += (memory.rss - memory.shared) / 1e6
    return sums


def labelled(output: Path) -> int:
    """Rows that are written; a file that is being written counts as soon as it is whole."""
    rows = 0
    for path in output.glob("rows/*.parquet"):
        with contextlib.suppress(pa.ArrowInvalid):
            rows += pq.read_metadata(path).num_rows
    return rows


def main(options: MemoryOptions) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", options.images)
        (folder / "vocab.txt").write_text("sky\nsand\ntree\n")
        flags = ["--vocab", str(folder / "vocab.txt"), *SETTINGS, "--rows-per-file", str(ROWS_PER_FILE)]
        job = start(str(folder / "corpus"), str(folder / "out"), [*flags, "--batch-size", "64"])
        driver = psutil.Process(job.pid)
        samples = []
        while job.poll() is None:
            images = labelled(folder / "out")
            samples.append({"images": images} | resident_mb(driver))
            time.sleep(options.interval_s)
        assert job.returncode == 0
    with (options.output / "memory.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, samples[0])
        writer.writeheader()
        writer.writerows({name: round(value) for name, value in sample.items()} for sample in samples)
    plot(samples, options.output / "memory.svg")
    for part in PARTS:
        early, late = (around(samples, part, options.images * share) for share in (0.25, 0.95))
        print(f"{part}: {early:.0f} MB at a quarter, {late:.0f} MB in the end, {late / early - 1:+.1%}")


def around(samples: list[dict[str, float]], part: str, images: float) -> float:
    """Median of a part's memory over the tenth of the run around a number of images."""
    width = samples[-1]["images"] / 20
    return statistics.median(sample[part] for sample in samples if abs(sample["images"] - images) <= width)


def plot(samples: list[dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for part in (*PARTS, "tasks"):
        axes.plot([sample["images"] for sample in samples], [sample[part] for sample in samples], label=part)
    axes.set(xlabel="images", ylabel="memory, MB", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(tyro.cli(MemoryOptions, description=__doc__))
