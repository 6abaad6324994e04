"""One measurement of the benchmark: models, images, timed runs, stages, peak memory."""

import io
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.full_size import build_models
from cliper.coarse import Queries
from cliper.fusion import fuse
from cliper.pipeline import Cliper, channels_first, stage
from cliper.preprocess import InputSpec
from cliper.runs import Runs, find_runs
from cliper.settings import MethodSettings
from cliper.vision import VisionTower
from cluster.actors import PRECISIONS
from cluster.corpus.decode import decode_image
from schemas.runs import annotations_from_runs, labels_from_runs

STAGES = ("preprocess", "clip", "vae", "unet", "compensation", "labels")


@dataclass(frozen=True)
class Case:
    """What is measured; see `benchmarks.speed.BenchmarkOptions`."""

    device: str
    clip: str
    compensation: str
    batch_size: int
    classes: int
    precision: str
    height_px: int
    width_px: int
    repeats: int


@dataclass(frozen=True)
class Measurement:
    """What came out.

    Attributes:
        seconds: per image, by stage; ``total`` is the whole method, ``decode`` and ``rle`` come on top.
        floor_seconds: per image, if all products of the fast path ran at the device's rate for large ones; None for the
            literal transcription.
        peak_memory_gb: of the GPU, or of the process on a CPU; models included.
        labels: of the first image.
    """

    seconds: dict[str, float]
    floor_seconds: float | None
    peak_memory_gb: float
    labels: np.ndarray

    def agreement(self, other: "Measurement") -> float:
        """Share of pixels with the same label."""
        return float((self.labels == other.labels).mean())

    def rows(self, case: Case, variant: str) -> list[dict[str, Any]]:
        """One row per stage."""
        columns = ("device", "clip", "compensation", "batch_size", "classes", "precision")
        shared = {name: getattr(case, name) for name in columns}
        return [
            {"variant": variant, "stage": stage}
            | shared
            | {
                "images_per_second": 1 / seconds,
                "ms_per_image": 1e3 * seconds,
                "peak_memory_gb": self.peak_memory_gb,
                "share_of_floor": self.floor_seconds / seconds if self.floor_seconds and stage == "total" else None,
            }
            for stage, seconds in self.seconds.items()
            if seconds > 0
        ]


def measure(case: Case, variant: str) -> Measurement:
    """Run a variant of a case on smooth random images, whose noise depends on their number."""
    device, dtype = torch.device(case.device), PRECISIONS[case.precision]
    tower, diffusion, defaults = build_models(case.clip, case.compensation != "none", device, dtype)
    settings = MethodSettings(**vars(defaults) | {"compensation": case.compensation})
    images = [some_image(case.height_px, case.width_px, number) for number in range(case.batch_size)]
    cliper = Cliper(tower, some_queries(tower, settings, images[0], case.classes), settings, diffusion)
    run = literal_run(cliper, images) if variant == "literal" else partial(fast_run, cliper, images)

    floor = products_seconds(run, device, dtype) / case.batch_size if variant == "fast" else None
    if variant == "fast" and case.device == "cuda" and diffusion is not None:
        diffusion.compile()  # as the actors do; after products were counted, which compiled code hides
    if case.device == "cuda":
        run()  # warm
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if case.device == "cuda" else [])
    with torch.inference_mode(), profile(activities=activities, acc_events=True) as recorded:
        runs = run()
        finish(case.device)
    seconds = {"total": min(timed(run, case.device) for _ in range(case.repeats)) / case.batch_size}
    seconds |= stage_seconds(recorded, case)
    if variant == "fast":
        seconds |= host_seconds(images[0], runs[0], case.classes)
    labels = labels_from_runs(runs[0].starts, runs[0].labels, runs[0].image_hw)
    return Measurement(seconds, floor, peak_memory_gb(device), labels)


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
    rows = torch.nn.functional.normalize(dense - dense.mean(dim=0), dim=-1)[patches]
    rows = rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)) / rows.shape[1] ** 0.5 / 2
    rows = torch.nn.functional.normalize(rows, dim=-1)
    return Queries.build(rows[:classes], rows[classes:], torch.arange(classes))


def fast_run(cliper: Cliper, images: list[np.ndarray]) -> list[Runs]:
    """The package, from decoded images to runs."""
    with stage("preprocess"):
        prepared = [cliper.inputs.prepare(Image.fromarray(image), seed) for seed, image in enumerate(images)]
    return [prediction.runs for prediction in cliper.predict(prepared)]


def literal_run(cliper: Cliper, images: list[np.ndarray]) -> Callable[[], list[Runs]]:
    """The literal transcription, on the same weights, one image after the other."""
    from tests.reference import literal

    clip = literal.ClipWeights.of(cliper.tower)
    rows, classes = cliper.queries.rows.to(cliper.tower.dtype), cliper.queries.classes
    queries = (rows[:classes], rows[classes:-1], cliper.queries.class_of_row.tolist())

    def run() -> list[Runs]:
        found: list[Runs] = []
        for seed, image in enumerate(images):
            noise = cliper.diffusion.noise(seed)[None] if cliper.diffusion else None
            stages = literal.annotate(clip, queries, cliper.settings, image, cliper.diffusion, noise)
            found += find_runs([stages.labels])
        return found

    return run


def timed(run: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    run()
    finish(device)
    return time.perf_counter() - started


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def stage_seconds(recorded: profile, case: Case) -> dict[str, float]:
    """Seconds per image of every stage that was named in the run."""
    microseconds: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        microseconds[event.key] += event.device_time_total if case.device == "cuda" else event.cpu_time_total
    keys = {name: f"cliper/{name}" for name in STAGES}
    return {name: microseconds[key] / 1e6 / case.batch_size for name, key in keys.items() if key in microseconds}


def host_seconds(image: np.ndarray, runs: Runs, classes: int) -> dict[str, float]:
    """Seconds per image of what happens around the method on the CPU: JPEG decoding, run-length encoding."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    runs_and_scores = (runs.starts, runs.labels, runs.image_hw, np.ones(classes, np.float32))
    steps = {
        "decode": lambda: decode_image(buffer.getvalue()),
        "rle": lambda: annotations_from_runs(*runs_and_scores),
    }
    return {name: min(timed(step, "cpu") for _ in range(10)) for name, step in steps.items()}


def products_seconds(run: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that a run's products would take if they all went at the rate of a large one."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    rate = 2 * side**3 / min(timed(lambda: a @ b, device.type) for _ in range(5))
    return counter.get_total_flops() / rate


def peak_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
