"""Batches fit into memory, and no image costs another one its labels."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from cliper.coarse import Queries
from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.pipeline import Cliper
from cliper.preprocess import Prepared
from cliper.segmenter import Prediction
from cliper.settings import VIT_B_16, MethodSettings
from cluster.batches import DOES_NOT_FIT, HOPELESS, REGROWTH, Failure, SafeBatches
from schemas.rows import Status


class SmallMemory(Cliper):
    """Runs out of memory as a GPU would, above a number of images."""

    most_images = 2
    error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory")

    def predict(self, prepared: Sequence[Prepared], *options: Any) -> list[Prediction]:
        if len(prepared) > self.most_images:
            raise self.error
        return super().predict(prepared, *options)


@pytest.fixture
def small_memory(tiny_clip: Path) -> SmallMemory:
    clip = find_clip(f"local-dir:{tiny_clip}")
    tower = load_vision_tower(clip, torch.device("cpu"), torch.float32)
    rows = torch.nn.functional.normalize(torch.randn(3, clip.model_cfg["embed_dim"]), dim=-1)
    settings = MethodSettings(**vars(VIT_B_16) | {"shorter_side_px": 112, "compensation": "none"})
    return SmallMemory(tower, Queries.build(rows[:2], rows[2:], torch.tensor([0, 1])), settings)


def prepared_images(small_memory: SmallMemory, count: int) -> list[Prepared]:
    images = [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8) for i in range(count)]
    return [small_memory.inputs.prepare(Image.fromarray(image), seed) for seed, image in enumerate(images)]


@pytest.mark.parametrize("message", ["CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"])
def test_batches_are_halved_until_they_fit_and_grow_again(
    message: str, small_memory: SmallMemory, caplog: pytest.LogCaptureFixture
) -> None:
    if "ALLOC" in message:
        small_memory.error = RuntimeError(message)
    prepared = prepared_images(small_memory, 9)
    batches = SafeBatches(small_memory, 9, 16)
    with caplog.at_level(logging.WARNING):
        first = batches.predict(prepared, [None] * 9)
        again = batches.predict(prepared, [None] * 9)
    assert [isinstance(prediction, Prediction) and prediction.runs.image_hw for prediction in first] == [
        (40 + i, 50) for i in range(9)
    ]
    assert len(again) == 9
    assert batches.chunk_size == 2
    assert [record.args for record in caplog.records] == [(9, 4), (4, 2)]
    small_memory.most_images = 99
    for _ in range(2 * REGROWTH + 9):
        batches.predict(prepared, [None] * 9)
    assert batches.chunk_size == 9


class Picky(SmallMemory):
    """Cannot label some images."""

    most_images = 99
    hated: tuple[int, ...] = (2,)

    def predict(self, prepared: Sequence[Prepared], *options: Any) -> list[Prediction]:
        if any(image.seed in self.hated for image in prepared):
            raise ValueError("no such shape")
        return super().predict(prepared, *options)


def test_an_image_with_which_the_models_fail_costs_itself(small_memory: SmallMemory) -> None:
    small_memory.__class__ = Picky
    found = SafeBatches(small_memory, 4, 16).predict(prepared_images(small_memory, 5), [None] * 5)
    assert [isinstance(prediction, Prediction) for prediction in found] == [True, True, False, True, True]
    assert found[2] == Failure(Status.CRASHED, "the models failed: ValueError: no such shape")


def test_models_that_never_work_end_the_job(small_memory: SmallMemory) -> None:
    small_memory.__class__ = Picky
    small_memory.hated = tuple(range(2 * HOPELESS))  # type: ignore[attr-defined]
    batches = SafeBatches(small_memory, 4, 16)
    with pytest.raises(ValueError, match="no such shape"):
        batches.predict(prepared_images(small_memory, 2 * HOPELESS), [None] * 2 * HOPELESS)


def test_a_lost_gpu_is_passed_on(small_memory: SmallMemory) -> None:
    small_memory.error = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(torch.AcceleratorError):
        SafeBatches(small_memory, 9, 16).predict(prepared_images(small_memory, 3), [None] * 3)


def test_panoramas_go_fewer_at_a_time(small_memory: SmallMemory) -> None:
    small_memory.most_images = 8
    sizes = []
    predict = small_memory.predict
    small_memory.predict = lambda prepared, *options: sizes.append(len(prepared)) or predict(prepared, *options)  # type: ignore[method-assign,func-returns-value]
    panorama = small_memory.inputs.prepare(Image.new("RGB", (4000, 50)), seed=0)
    assert panorama.clip.size // (3 * 16**2) > 1000
    usual = prepared_images(small_memory, 8)
    with patch("cluster.batches.USUAL_PATCHES", 500):
        SafeBatches(small_memory, 8, 16).predict([*usual, panorama, panorama, panorama, *usual], [None] * 19)
    assert sizes == [8, 1, 1, 1, 8]


def test_an_image_that_does_not_fit_alone_is_given_up(small_memory: SmallMemory) -> None:
    small_memory.most_images = 0
    prepared = small_memory.inputs.prepare(Image.new("RGB", (50, 40)), seed=0)
    found = SafeBatches(small_memory, 4, 16).predict([prepared] * 4, [None] * 4)
    assert found == [DOES_NOT_FIT] * 4


def test_what_a_cpu_has_no_memory_for_is_not_tried(small_memory: SmallMemory) -> None:
    """112 px on 50 x 40 px are 7 x 9 patches; 7 x 18 need four times as much."""
    wide = small_memory.inputs.prepare(Image.new("RGB", (100, 40)), 0)
    usual = prepared_images(small_memory, 1)[0]
    least, most = small_memory.memory_bytes(usual), small_memory.memory_bytes(wide)
    assert most / least == (wide.clip.size / usual.clip.size) ** 2
    batches = SafeBatches(small_memory, 1, 16, memory_bytes=(least + most) / 2)
    first, second, third = batches.predict([usual, wide, usual], [None] * 3)
    assert isinstance(first, Prediction)
    assert second == DOES_NOT_FIT
    assert isinstance(third, Prediction)
