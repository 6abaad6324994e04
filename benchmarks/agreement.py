"""Whether labels stay the same in another number format: the demo models on drawn images."""

from functools import partial

import numpy as np
import torch

from benchmarks.variants import RUNS, Models, Variant
from cliper.coarse import Queries
from cliper.models import DEMO
from cliper.settings import Compensation
from cliper.specs import PRECISIONS, build_queries, set_torch_flags
from cliper.vocabulary import VocabularyRequest
from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.common.options import MethodOptions
from jobs.common.request import find_models
from schemas.runs import labels_from_runs
from schemas.vocabulary import VocabularyClass

IMAGES = 8
FIRST_SEED = 20_000
"""No image of this seed and the next ones was trained on."""
IMAGE_HW = (240, 320)


def agreement_with_fp32(device_type: str, precision: str, compensation: Compensation) -> dict[Variant, float]:
    """By variant the share of label pixels that are those of the literal transcription in fp32, on the same device."""
    set_torch_flags(device_type == "cuda")
    images = [draw(FIRST_SEED + number, *IMAGE_HW).image for number in range(IMAGES)]
    labels = partial(label_maps, images, drawn_queries(), compensation, torch.device(device_type))
    expected = labels("literal", torch.float32)
    found: dict[Variant, np.ndarray] = {"fast": labels("fast", PRECISIONS[precision])}
    found["literal"] = expected if precision == "fp32" else labels("literal", PRECISIONS[precision])
    return {variant: float((own == expected).mean()) for variant, own in found.items()}


def label_maps(
    images: list[np.ndarray],
    queries: Queries,
    compensation: Compensation,
    device: torch.device,
    variant: Variant,
    dtype: torch.dtype,
) -> np.ndarray:
    """Labels [images, height, width]."""
    cliper = Models.of(DEMO, compensation, device, dtype).method(variant, queries, len(images))
    run = RUNS[variant](cliper, images)
    return np.stack([labels_from_runs(runs.starts, runs.labels, runs.image_hw) for runs in run()])


def drawn_queries() -> Queries:
    """What the drawn world consists of."""
    vocabulary = VocabularyRequest(tuple(VocabularyClass(name, (name,)) for name in NAMES), (), ("{}",), ready=None)
    models = find_models(MethodOptions(clip=DEMO, diffusion=DEMO))
    return build_queries(vocabulary.embed(models.clip, "release"), "release")
