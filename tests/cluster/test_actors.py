"""Batches that fit into memory."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cliper.coarse import Queries
from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.pipeline import Annotation, Cliper
from cliper.settings import VIT_B_16, MethodSettings
from cluster.actors import FittingBatches


class SmallMemory(Cliper):
    """Runs out of memory as a GPU would, above a number of pictures."""

    room = 2

    def annotate(self, images: Sequence[np.ndarray], seeds: Sequence[int], **options: Any) -> list[Annotation]:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().annotate(images, seeds, **options)


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
    batches = FittingBatches(small_memory, at_once=9)
    with caplog.at_level(logging.WARNING):
        first = batches.annotate(images, range(9))
        again = batches.annotate(images, range(9))
    assert [annotation and annotation.labels.shape for annotation in first] == [image.shape[:2] for image in images]
    assert len(again) == 9
    assert batches.at_once == 2
    assert [record.args for record in caplog.records] == [(9, 4), (4, 2)]


def test_a_picture_that_does_not_fit_alone_has_no_annotation(small_memory: SmallMemory) -> None:
    small_memory.room = 0
    found = FittingBatches(small_memory, at_once=4).annotate([np.zeros((40, 50, 3), np.uint8)] * 4, range(4))
    assert found == [None] * 4
