"""Running a segmenter on images in memory, as the preparing task and the actor do together."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cliper.baselines import Baseline
from cliper.labels import find_competitors, label_map
from cliper.pipeline import Cliper
from cliper.preprocess import InputSpec, Prepared
from cliper.segmenter import AllowedClasses, Prediction
from cliper.settings import MethodSettings
from schemas.runs import labels_from_runs


class Stages(NamedTuple):
    """What CLIPer computes of an image, stage by stage."""

    attention: Tensor
    coarse: Tensor
    refined: Tensor
    scores: Tensor
    labels: Tensor


class Result(NamedTuple):
    """A method's answer for an image."""

    scores: Tensor
    labels: Tensor


def run_stages(
    cliper: Cliper,
    images: Sequence[np.ndarray],
    seeds: Sequence[int],
    allowed: AllowedClasses | None = None,
    noise: Sequence[Tensor] | None = None,
) -> list[Stages]:
    prepared = prepare(cliper.inputs, images, seeds)
    maps = cliper.maps(prepared, noise)
    results = map(result_of, cliper.read_out(maps, prepared, allowed))
    return [Stages(*stages, *result) for *stages, result in zip(*maps[:3], results, strict=True)]


def predict(
    segmenter: Cliper | Baseline,
    images: Sequence[np.ndarray],
    seeds: Sequence[int],
    allowed: AllowedClasses | None = None,
) -> list[Result]:
    return list(map(result_of, segmenter.predict(prepare(segmenter.inputs, images, seeds), allowed)))


def prepare(inputs: InputSpec, images: Sequence[np.ndarray], seeds: Sequence[int]) -> list[Prepared]:
    return [inputs.prepare(Image.fromarray(image), seed) for image, seed in zip(images, seeds, strict=True)]


def result_of(prediction: Prediction) -> Result:
    runs = prediction.runs
    labels = labels_from_runs(runs.starts, runs.labels, runs.image_hw).astype(np.int32)
    return Result(torch.from_numpy(prediction.scores), torch.from_numpy(labels))


def labels_of(
    refined: Tensor,
    scores: Tensor,
    image_hw: tuple[int, int],
    settings: MethodSettings,
    allowed: Collection[int] | None = None,
) -> Tensor:
    """The label map of one image."""
    (competitors,) = find_competitors(scores[None], settings, [allowed])
    return label_map(refined, competitors, image_hw, settings)
