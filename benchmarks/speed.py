"""Compare the speed of the package with the literal transcription of the method, at full size with random weights.

Run it from the repository root: ``python -m benchmarks.speed --device cpu --clip ViT-B-16``.
"""

import csv
import io
import json
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.full_size import build_diffusion, build_tower
from cliper.coarse import Queries
from cliper.fusion import fuse
from cliper.pipeline import Cliper, stage
from cliper.preprocess import InputSpec
from cliper.runs import Runs, find_runs
from cliper.settings import MethodSettings
from cliper.transfer import channels_first
from cliper.vision import VisionTower
from cluster.actors import PRECISIONS
from cluster.corpus.decode import decode_rgb
from schemas.runs import annotations_from_runs, labels_from_runs
from tests.reference import literal

STAGES = ("preprocess", "clip", "vae", "unet", "compensation", "labels")
VERSIONS = ("torch", "diffusers", "open_clip_torch")
Row = dict[str, Any]


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
    rows: list[Row] = []
    axes = (options.clip, options.compensation, options.classes, options.batch_sizes)
    for clip, compensation, classes, batch_size in product(*(axis.split(",") for axis in axes)):
        found: list[Row] = []
        labels: dict[str, np.ndarray] = {}
        for variant in ("literal", "fast"):  # the literal transcription first, because the package is compared with it
            if variant in options.variants.split(","):
                case = (options, variant, clip, compensation, int(batch_size), int(classes))
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its own peak memory
                    measured, labels[variant] = process.submit(measure, *case).result()
                same = float((labels[variant] == labels["literal"]).mean()) if "literal" in labels else None
                found += [row | {"agreement": same} for row in measured]
        show(found, console)
        rows += found
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.results is not None:
        append(options.results, rows)


def measure(
    options: BenchmarkOptions, variant: str, clip: str, compensation: str, batch_size: int, classes: int
) -> tuple[list[Row], np.ndarray]:
    """Run a variant of a combination on smooth random images, whose noise depends on their number.

    Returns:
        * A row per stage. ``total`` is the whole method; ``decode`` and ``rle`` come on top. Memory is that of the GPU,
          or of the process on a CPU; models included. The share of the floor compares the package with the time that
          its products would take at the device's rate for large ones.
        * The labels of the first image.
    """
    device, dtype, on_gpu = torch.device(options.device), PRECISIONS[options.precision], options.device == "cuda"
    tower, defaults = build_tower(clip, device, dtype)
    diffusion = build_diffusion(clip, device, dtype) if compensation != "none" else None
    settings = MethodSettings(**vars(defaults) | {"compensation": compensation})
    images = [some_image(options.height_px, options.width_px, number) for number in range(batch_size)]
    cliper = Cliper(tower, some_queries(tower, settings, images[0], classes), settings, diffusion)
    run, floor = partial(fast_run, cliper, images), 0.0
    if variant == "literal":
        run = partial(literal_run, cliper, literal.ClipWeights.of(tower), images)
    else:
        floor = products_seconds(run, device, dtype) / batch_size
        if on_gpu and diffusion is not None:
            diffusion.compile([])  # as the actors do; after products were counted, which compiled code hides
    runs, stages = profiled(run, device)
    seconds = {"total": min(timed(run, device) for _ in range(options.repeats)) / batch_size}
    seconds |= {name: of_batch / batch_size for name, of_batch in stages.items()}
    if variant == "fast":
        seconds |= around(images[0], runs, classes)
    memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = [
        {
            "variant": variant,
            "stage": name,
            "device": options.device,
            "clip": clip,
            "compensation": compensation,
            "batch_size": batch_size,
            "classes": classes,
            "precision": options.precision,
            "images_per_second": 1 / value,
            "ms_per_image": 1e3 * value,
            "peak_memory_gb": memory / 1e9,
            "share_of_floor": floor / value if floor and name == "total" else None,
        }
        for name, value in seconds.items()
        if value > 0
    ]
    return rows, labels_from_runs(runs.starts, runs.labels, runs.image_hw)


def profiled(run: Callable[[], list[Runs]], device: torch.device) -> tuple[Runs, dict[str, float]]:
    """The first image's label map, and the seconds of every stage of one run."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        run()  # warm
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with torch.inference_mode(), profile(activities=activities, acc_events=True) as recorded:
        runs = run()[0]
        finish(device)
    events = recorded.key_averages()
    seconds = {}
    for name in STAGES:
        own = [event for event in events if event.key == f"cliper/{name}"]
        seconds[name] = sum(event.device_time_total if on_gpu else event.cpu_time_total for event in own) / 1e6
    return runs, seconds


def around(image: np.ndarray, runs: Runs, classes: int) -> dict[str, float]:
    """Seconds of what the job does with an image before and after the method."""
    jpeg = io.BytesIO()
    Image.fromarray(image).save(jpeg, "JPEG", quality=90)
    encode = partial(annotations_from_runs, runs.starts, runs.labels, runs.image_hw, np.ones(classes, np.float32))
    steps: dict[str, Callable[[], Any]] = {"decode": partial(decode_rgb, jpeg.getvalue()), "rle": encode}
    return {name: min(timed(step, torch.device("cpu")) for _ in range(10)) for name, step in steps.items()}


def some_image(height: int, width: int, seed: int) -> np.ndarray:
    """Soft blotches of colour."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.BLUR))


@torch.inference_mode()
def some_queries(tower: VisionTower, settings: MethodSettings, image: np.ndarray, classes: int) -> Queries:
    """Classes and 25 background queries that a random tower tells apart: what sets patches off, and noise."""
    clip = InputSpec(settings.shorter_side_px, tower.patch_size_px).prepare(Image.fromarray(image), seed=0).clip
    pixels = tower.normalize(channels_first([clip], tower.device))
    dense = fuse(tower, pixels, settings).dense[-1][0].cpu()
    patches = torch.arange(classes + 25) * 7919 % len(dense)
    rows = F.normalize(dense - dense.mean(dim=0), dim=-1)[patches]
    rows = rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)) / rows.shape[1] ** 0.5 / 2
    rows = F.normalize(rows, dim=-1)
    return Queries.build(rows[:classes], rows[classes:], torch.arange(classes))


def fast_run(cliper: Cliper, images: list[np.ndarray]) -> list[Runs]:
    """The package, from decoded images to runs."""
    with stage("preprocess"):
        prepared = [cliper.inputs.prepare(Image.fromarray(image), seed) for seed, image in enumerate(images)]
    return [prediction.runs for prediction in cliper.predict(prepared)]


def literal_run(cliper: Cliper, clip: literal.ClipWeights, images: list[np.ndarray]) -> list[Runs]:
    """The literal transcription, on the same weights, one image after the other."""
    rows, classes = cliper.queries.rows.to(cliper.tower.dtype), cliper.queries.classes
    queries = (rows[:classes], rows[classes:-1], cliper.queries.class_of_row.tolist())
    label_maps = []
    for seed, image in enumerate(images):
        noise = cliper.diffusion.noise(seed)[None] if cliper.diffusion else None
        label_maps.append(literal.annotate(clip, queries, cliper.settings, image, cliper.diffusion, noise).labels)
    return find_runs(label_maps)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    finish(device)
    return time.perf_counter() - started


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def products_seconds(run: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that a run's products would take if they all went at the rate of a large one."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    rate = 2 * side**3 / min(timed(lambda: a @ b, device) for _ in range(5))
    return counter.get_total_flops() / rate


def show(rows: list[Row], console: Console) -> None:
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


def append(path: Path, rows: list[Row]) -> None:
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
