"""Batches are halved until they fit into memory."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cliper.coarse import Queries
from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.pipeline import Cliper, Prediction
from cliper.preprocess import Prepared
from cliper.settings import VIT_B_16, MethodSettings
from cluster.actors import OomSafeBatches


class SmallMemory(Cliper):
    """Runs out of memory as a GPU would, above a number of images."""

    most_images = 2

    def predict(self, prepared: Sequence[Prepared], *options: Any) -> list[Prediction]:
        if len(prepared) > self.most_images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().predict(prepared, *options)


@pytest.fixture
def small_memory(tiny_clip: Path) -> SmallMemory:
    clip = find_clip(f"local-dir:{tiny_clip}")
    tower = load_vision_tower(clip, torch.device("cpu"), torch.float32)
    rows = torch.nn.functional.normalize(torch.randn(3, clip.model_cfg["embed_dim"]), dim=-1)
    settings = MethodSettings(**vars(VIT_B_16) | {"shorter_side_px": 112, "compensation": "none"})
    return SmallMemory(tower, Queries.build(rows[:2], rows[2:], torch.tensor([0, 1])), settings)


def test_batches_are_halved_until_they_fit_and_stay_small(
    small_memory: SmallMemory, caplog: pytest.LogCaptureFixture
) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8) for i in range(9)]
    prepared = [small_memory.inputs.prepare(Image.fromarray(image), seed) for seed, image in enumerate(images)]
    batches = OomSafeBatches(small_memory, chunk_size=9)
    with caplog.at_level(logging.WARNING):
        first = batches.predict(prepared, [None] * 9)
        again = batches.predict(prepared, [None] * 9)
    assert [prediction and prediction.runs.image_hw for prediction in first] == [image.shape[:2] for image in images]
    assert len(again) == 9
    assert batches.chunk_size == 2
    assert [record.args for record in caplog.records] == [(9, 4), (4, 2)]


def test_an_image_that_does_not_fit_alone_has_no_prediction(small_memory: SmallMemory) -> None:
    small_memory.most_images = 0
    prepared = small_memory.inputs.prepare(Image.new("RGB", (50, 40)), seed=0)
    found = OomSafeBatches(small_memory, chunk_size=4).predict([prepared] * 4, [None] * 4)
    assert found == [None] * 4
