"""Compare the speed of the package with the literal transcription of the method, at full size with random weights.

Run it from the repository root: ``python -m benchmarks.speed --device cpu --clip ViT-B-16 --batch-sizes 1``.
"""

import csv
import json
import platform
import resource
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from benchmarks.agreement import agreement_with_fp32
from benchmarks.clock import apart, seconds_in_threads, timed, timed_stages
from benchmarks.images import jpeg_of, parse_size, some_image
from benchmarks.roofline import CountedCase, Rates, count_apart, floors, measure_rates
from benchmarks.variants import RUNS, Models, Variant, label
from cliper.coarse import Queries
from cliper.decode import decode_rgb
from cliper.fusion import fuse
from cliper.pipeline import Cliper
from cliper.preprocess import InputSpec, Prepared
from cliper.segmenter import Prediction
from cliper.settings import Compensation
from cliper.specs import PRECISIONS, set_torch_flags
from cliper.transfer import channels_first
from cluster.options import ClusterOptions
from cluster.sizing import CALLS_PER_GPU_ACTOR
from schemas.runs import annotations_from_runs

STAGES = ("resize", "preprocess", "clip", "vae", "unet", "compensation", "labels", "between")
"""Parts of the package's ``total``, in order."""
VERSIONS = ("torch", "diffusers", "open_clip_torch")
HOST = torch.device("cpu")
Precision = Literal["bf16", "fp16", "fp32"]
Row = dict[str, Any]


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure. Each combination is measured in a process of its own."""

    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of the models."""
    clip: tuple[str, ...] = ("ViT-L-14",)
    """open_clip architectures, each with Stable Diffusion 2.1-base and random weights; or demo."""
    variants: tuple[Variant, ...] = ("literal", "fast")
    """literal (the transcription of the method), fast (the package), or both."""
    compensation: tuple[Compensation, ...] = ("product", "none")
    """With and without fine-grained compensation."""
    batch_sizes: tuple[int, ...] = (1, ClusterOptions.batch_size)
    """Images per batch. The literal transcription processes them one by one."""
    image_size: tuple[str, ...] = ("500x375", "4000x3000")
    """Sizes of images, WIDTHxHEIGHT."""
    classes: tuple[int, ...] = (21,)
    """Sizes of the vocabulary."""
    precision: Precision = "fp16" if torch.cuda.is_available() else "fp32"
    """Data type of weights and activations."""
    repeats: int = 3
    """Timed runs of each combination, of which the fastest counts; and batches of each thread."""
    json: Path | None = None
    """JSON file for the rows."""
    results: Path | None = None
    """CSV file to append the rows to, such as benchmarks/results.csv."""


class Combination(NamedTuple):
    """What is measured at a time; see `BenchmarkOptions`."""

    variant: Variant
    clip: str
    compensation: Compensation
    image_size: str
    classes: int
    batch_size: int

    @classmethod
    def of(cls, row: Row) -> "Combination":
        """The combination that a row belongs to."""
        return cls(*(row[name] for name in cls._fields))


def main(options: BenchmarkOptions) -> None:
    """Measure every combination. Print tables and write the rows."""
    console = Console()
    if not console.is_terminal:
        console.width = 140
    device, precision = options.device, options.precision
    axes = (options.clip, options.compensation, options.image_size, options.classes, options.batch_sizes)
    rates = apart(measure_rates, device, precision)
    agreement = {
        compensation: apart(agreement_with_fp32, device, precision, compensation)
        for compensation in options.compensation
    }
    rows: list[Row] = []
    for of in product(*axes):
        found: list[Row] = []
        for variant in options.variants:
            found += apart(measure, device, precision, options.repeats, Combination(variant, *of))
        counts = count_apart([counted_case(Combination("fast", *of), precision)])
        complete(found, counts, rates, agreement)
        show(found, console)
        rows += found
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.results is not None:
        append(options.results, rows)


def measure(device_type: str, precision: Precision, repeats: int, combination: Combination) -> list[Row]:
    """Run a combination on smooth random images, whose noise depends on their number.

    Returns:
        A row per stage. ``total`` is the fastest run from decoded images to runs of the label map, one batch after the
        other, and `STAGES` are its parts. The others are of the package alone: ``decode`` and ``rle`` of one image on
        the host; ``actor``, the threads of an actor with batches that are decoded and resized already; and ``end to
        end``, the same threads with JPEG files. Memory is that of labelling on a GPU, or of the process on a CPU;
        models included.
    """
    on_gpu = device_type == "cuda"
    set_torch_flags(on_gpu)
    device, (variant, clip, compensation, image_size, classes, batch_size) = torch.device(device_type), combination
    models = Models.of(clip, compensation, device, PRECISIONS[precision])
    images = [some_image(*parse_size(image_size), number) for number in range(batch_size)]
    cliper = models.method(variant, some_queries(models, images[0], classes), batch_size)
    run = RUNS[variant](cliper, images)
    run()  # not timed: it compiles and reserves memory, and libraries prepare themselves
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    total, stages = min((timed_stages(run, device) for _ in range(repeats)), key=lambda found: found[0])
    parts = STAGES if variant == "fast" else ("compensation",)
    seconds = {"total": total} | {name: stages[name] for name in parts if name in stages}
    seconds = {name: of_batch / batch_size for name, of_batch in seconds.items()}
    if variant == "fast":
        seconds |= around(cliper, images, CALLS_PER_GPU_ACTOR * repeats)
    memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [
        {
            "variant": variant,
            "stage": name,
            "device": device_type,
            "clip": clip,
            "compensation": compensation,
            "batch_size": batch_size,
            "classes": classes,
            "precision": precision,
            "images_per_second": 1 / value,
            "ms_per_image": 1e3 * value,
            "peak_memory_gb": memory / 1e9,
            "image_size": image_size,
        }
        for name, value in seconds.items()
        if value > 0
    ]


def around(cliper: Cliper, images: list[np.ndarray], batches: int) -> dict[str, float]:
    """Seconds of an image in what the job does before and after the method, and in all of it together."""
    files = [jpeg_of(image) for image in images]
    prepared = [read(cliper.inputs, file, seed) for seed, file in enumerate(files)]
    prediction = label(cliper, prepared[:1])[0]
    alone: dict[str, Callable[[], Any]] = {
        "decode": partial(decode_rgb, files[0]),
        "rle": partial(encode, prediction),
    }

    def label_prepared() -> None:
        for found in label(cliper, prepared):
            encode(found)

    def label_files() -> None:
        for found in label(cliper, [read(cliper.inputs, file, seed) for seed, file in enumerate(files)]):
            encode(found)

    together = {"actor": label_prepared, "end to end": label_files}
    device = cliper.tower.device
    return {name: min(timed(step, HOST) for _ in range(10)) for name, step in alone.items()} | {
        name: seconds_in_threads(work, batches, device) / len(images) for name, work in together.items()
    }


def read(inputs: InputSpec, file: bytes, seed: int) -> Prepared:
    return inputs.prepare(decode_rgb(file), seed)


def encode(prediction: Prediction) -> list[dict[str, Any]]:
    runs = prediction.runs
    return annotations_from_runs(runs.starts, runs.labels, runs.image_hw, prediction.scores)


@torch.inference_mode()
def some_queries(models: Models, image: np.ndarray, classes: int) -> Queries:
    """Classes and 25 background queries that a random tower tells apart: what sets patches off, and noise."""
    tower, settings, _ = models
    clip = InputSpec(settings.shorter_side_px, tower.patch_size_px).prepare(Image.fromarray(image), seed=0).clip
    pixels = tower.normalize(channels_first([clip], tower.device))
    dense = fuse(tower, pixels, settings).dense[-1][0].cpu()
    patches = torch.arange(classes + 25) * 7919 % len(dense)
    rows = F.normalize(dense - dense.mean(dim=0), dim=-1)[patches]
    rows = rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)) / rows.shape[1] ** 0.5 / 2
    rows = F.normalize(rows, dim=-1)
    return Queries.build(rows[:classes], rows[classes:], torch.arange(classes))


def counted_case(of: Combination, precision: str) -> CountedCase:
    """The case of `benchmarks.counts` for a combination."""
    return CountedCase(of.clip, of.compensation, of.batch_size, of.classes, parse_size(of.image_size), precision)


def complete(
    rows: list[Row],
    counts: Mapping[CountedCase, Mapping[str, Any]],
    rates: Rates | None,
    agreement: Mapping[Compensation, Mapping[Variant, float]],
) -> None:
    """Add to rows of the same precision what was found out beside them.

    Args:
        rows: get the milliseconds that a stage of the package needs at least, see `benchmarks.roofline.floors`; the
            shares of the measured time that this floor, and the arithmetic and the bytes alone, explain; and the
            agreement. All are None where they are not known.
        counts: by case.
        rates: of the device.
        agreement: by compensation and variant, see `agreement_with_fp32`.
    """
    for row in rows:
        floor = None
        if row["variant"] == "fast" and rates is not None:
            case = counted_case(Combination.of(row), row["precision"])
            floor = floors(counts[case], rates).get(row["stage"]) if case in counts else None
        took = row["ms_per_image"]
        row |= {
            "floor_ms": floor.both if floor else None,
            "share_of_floor": floor.both / took if floor else None,
            "share_of_arithmetic": floor.arithmetic / took if floor else None,
            "share_of_bytes": floor.bytes / took if floor else None,
            "agreement": agreement.get(row["compensation"], {}).get(row["variant"]),
        }


def show(rows: list[Row], console: Console) -> None:
    """Print the table of one combination, with ratios to the literal transcription."""
    title = (
        "{clip} · compensation {compensation} · batch {batch_size} · {image_size} px · {classes} classes · "
        "{precision} · {device}"
    )
    table = Table(title=title.format(**rows[0]), title_justify="left", caption="fastest run", min_width=70)
    columns = (
        "variant", "stage", "ms/image", "images/s", "ratio", "floor ms", "of floor", "arithmetic", "bytes", "peak GB",
        "agreement",
    )  # fmt: skip
    for column in columns:
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
            "" if row["floor_ms"] is None else f"{row['floor_ms']:.2f}",
            *(percent(row[f"share_of_{name}"]) for name in ("floor", "arithmetic", "bytes")),
            f"{row['peak_memory_gb']:.2f}",
            "" if row["agreement"] is None else f"{row['agreement']:.4f}",
        )
    console.print(table)


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def append(path: Path, rows: list[Row]) -> None:
    """Append rows to a CSV file, with date, commit, machine and versions.

    Raises:
        ValueError: the file has other columns.
    """
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    origin = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine,
        "versions": " ".join(f"{name}={version(name)}" for name in VERSIONS),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        writer = csv.DictWriter(file, header or [*origin, *rows[0]])
        if header is None:
            writer.writeheader()
        writer.writerows(origin | row for row in rows)


def commit() -> str:
    """The abbreviated commit of the working tree; empty without git."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip()


if __name__ == "__main__":
    main(tyro.cli(BenchmarkOptions, description=__doc__))
