"""One measurement of the benchmark: images, timed runs, stages, peak memory."""

import io
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.full_size import build_diffusion, build_tower
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
from tests.reference import literal

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


def measure(
    case: Case, variant: str, height_px: int, width_px: int, repeats: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Run a variant of a case on smooth random images, whose noise depends on their number.

    Returns:
        * A row per stage. ``total`` is the whole method; ``decode`` and ``rle`` come on top. Memory is that of the GPU,
          or of the process on a CPU; models included. The share of the floor compares the package with the time that
          its products would take at the device's rate for large ones.
        * The labels of the first image.
    """
    device, dtype, on_gpu = torch.device(case.device), PRECISIONS[case.precision], case.device == "cuda"
    tower, defaults = build_tower(case.clip, device, dtype)
    diffusion = build_diffusion(case.clip, device, dtype) if case.compensation != "none" else None
    settings = MethodSettings(**vars(defaults) | {"compensation": case.compensation})
    images = [some_image(height_px, width_px, number) for number in range(case.batch_size)]
    cliper = Cliper(tower, some_queries(tower, settings, images[0], case.classes), settings, diffusion)
    run, floor = partial(fast_run, cliper, images), 0.0
    if variant == "literal":
        run = partial(literal_run, cliper, literal.ClipWeights.of(tower), images)
    else:
        floor = products_seconds(run, device, dtype) / case.batch_size
        if on_gpu and diffusion is not None:
            diffusion.compile()  # as the actors do; after products were counted, which compiled code hides
    if on_gpu:
        run()  # warm
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with torch.inference_mode(), profile(activities=activities, acc_events=True) as recorded:
        runs = run()[0]
        finish(device)
    seconds = {"total": min(timed(run, device) for _ in range(repeats)) / case.batch_size}
    for name in STAGES:
        events = [event for event in recorded.key_averages() if event.key == f"cliper/{name}"]
        microseconds = sum(event.device_time_total if on_gpu else event.cpu_time_total for event in events)
        seconds[name] = microseconds / 1e6 / case.batch_size
    if variant == "fast":
        jpeg = io.BytesIO()
        Image.fromarray(images[0]).save(jpeg, "JPEG", quality=90)
        scores = np.ones(case.classes, np.float32)
        encode = partial(annotations_from_runs, runs.starts, runs.labels, runs.image_hw, scores)
        seconds["decode"] = min(timed(partial(decode_image, jpeg.getvalue()), device) for _ in range(10))
        seconds["rle"] = min(timed(encode, device) for _ in range(10))
    memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = [
        {
            "variant": variant,
            "stage": name,
            **asdict(case),
            "images_per_second": 1 / value,
            "ms_per_image": 1e3 * value,
            "peak_memory_gb": memory / 1e9,
            "share_of_floor": floor / value if floor and name == "total" else None,
        }
        for name, value in seconds.items()
        if value > 0
    ]
    return rows, labels_from_runs(runs.starts, runs.labels, runs.image_hw)


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
