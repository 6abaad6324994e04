"""The two things that are compared: the package, as an actor has it, and a literal transcription of the method."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.full_size import build_diffusion, build_tower
from cliper.coarse import Queries
from cliper.diffusion import DiffusionModel
from cliper.pipeline import Cliper
from cliper.preprocess import Prepared
from cliper.runs import Runs, find_runs
from cliper.segmenter import Prediction
from cliper.settings import Compensation, MethodSettings
from cliper.specs import build_cliper
from cliper.stages import stage
from cliper.vision import VisionTower
from tests.reference import literal

Variant = Literal["literal", "fast"]


class Models(NamedTuple):
    """Models and the settings that suit them."""

    tower: VisionTower
    settings: MethodSettings
    diffusion: DiffusionModel | None

    @classmethod
    def of(cls, clip: str, compensation: Compensation, device: torch.device, dtype: torch.dtype) -> "Models":
        """For the names see `benchmarks.full_size`."""
        tower, defaults = build_tower(clip, device, dtype)
        settings = MethodSettings(**vars(defaults) | {"compensation": compensation})
        return cls(tower, settings, build_diffusion(clip, device, dtype) if settings.needs_diffusion else None)

    def method(self, variant: Variant, queries: Queries, batch: int) -> Cliper:
        """What the variant runs with; the package as an actor has it on the device."""
        if variant == "fast":
            return build_cliper(self.tower, queries, self.settings, self.diffusion, batch)
        return Cliper(self.tower, queries, self.settings, self.diffusion)


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
    clip, diffusion = literal.ClipWeights.of(cliper.tower), cliper.affinity
    assert diffusion is None or isinstance(diffusion, DiffusionModel), "the transcription knows no other"
    rows, classes = cliper.queries.rows.to(cliper.tower.dtype), cliper.queries.classes
    queries = (rows[:classes], rows[classes:-1], cliper.queries.class_of_row.tolist())

    def run() -> list[Runs]:
        label_maps = []
        for seed, image in enumerate(images):
            noise = diffusion.noise(seed)[None] if diffusion else None
            label_maps.append(literal.annotate(clip, queries, cliper.settings, image, diffusion, noise).labels)
        return find_runs(label_maps)

    return run


RUNS: dict[Variant, Callable[[Cliper, Sequence[np.ndarray]], Callable[[], list[Runs]]]] = {
    "literal": run_literal,
    "fast": run_package,
}
