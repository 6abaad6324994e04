"""The two things that are compared: the package, as an actor has it, and a literal transcription of the method."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image

from benchmarks.full_size import build_diffusion, build_tower
from cliper.diffusion import DiffusionModel
from cliper.pipeline import Cliper, Prediction, needs_diffusion, stage
from cliper.preprocess import Prepared
from cliper.runs import Runs, find_runs
from cliper.settings import Compensation, MethodSettings
from cliper.vision import VisionTower
from cluster.actors import with_gpu_parts
from tests.reference import literal

Variant = Literal["literal", "fast"]


def build_method(
    variant: Variant, clip: str, compensation: Compensation, device: torch.device, dtype: torch.dtype
) -> tuple[VisionTower, MethodSettings, DiffusionModel | None]:
    """Models and settings; those of the package as an actor has them on the device."""
    tower, defaults = build_tower(clip, device, dtype)
    settings = MethodSettings(**vars(defaults) | {"compensation": compensation})
    diffusion = build_diffusion(clip, device, dtype) if needs_diffusion(settings) else None
    if variant == "fast":
        tower, _ = with_gpu_parts(tower, diffusion)
    return tower, settings, diffusion


def run_package(cliper: Cliper, images: Sequence[np.ndarray]) -> Callable[[], list[Runs]]:
    """From decoded images to runs."""

    def run() -> list[Runs]:
        with stage("resize"):
            prepared = [cliper.inputs.prepare(Image.fromarray(image), seed) for seed, image in enumerate(images)]
        return [prediction.runs for prediction in label(cliper, prepared)]

    return run


def label(cliper: Cliper, prepared: Sequence[Prepared]) -> list[Prediction]:
    """Label a batch, with no more images at a time than an actor gives to the device."""
    most = min(len(prepared), cliper.largest_batch)
    return [
        prediction
        for first in range(0, len(prepared), most)
        for prediction in cliper.predict(prepared[first : first + most])
    ]


def run_literal(cliper: Cliper, images: Sequence[np.ndarray]) -> Callable[[], list[Runs]]:
    """The same by the transcription, on the same weights, one image after the other."""
    clip = literal.ClipWeights.of(cliper.tower)
    rows, classes = cliper.queries.rows.to(cliper.tower.dtype), cliper.queries.classes
    queries = (rows[:classes], rows[classes:-1], cliper.queries.class_of_row.tolist())

    def run() -> list[Runs]:
        label_maps = []
        for seed, image in enumerate(images):
            noise = cliper.diffusion.noise(seed)[None] if cliper.diffusion else None
            label_maps.append(literal.annotate(clip, queries, cliper.settings, image, cliper.diffusion, noise).labels)
        return find_runs(label_maps)

    return run


RUNS: dict[Variant, Callable[[Cliper, Sequence[np.ndarray]], Callable[[], list[Runs]]]] = {
    "literal": run_literal,
    "fast": run_package,
}
