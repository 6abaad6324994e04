"""Batches fit into memory, and what the models give is checked."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from PIL import Image

from cliper.coarse import Queries
from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.pipeline import Cliper, Prediction
from cliper.preprocess import Prepared
from cliper.settings import VIT_B_16, MethodSettings
from cluster.actors import REGROWTH, Labeller, OomSafeBatches
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.prepare import PREPARED_SCHEMA, Preparer
from cluster.corpus.readers import Record
from cluster.encoders import AnnotationEncoder
from cluster.progress import start_counter
from schemas.rows import Status
from tests.support.corpora import jpeg


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
    batches = OomSafeBatches(small_memory, 9, 16)
    with caplog.at_level(logging.WARNING):
        first = batches.predict(prepared, [None] * 9)
        again = batches.predict(prepared, [None] * 9)
    assert [prediction and prediction.runs.image_hw for prediction in first] == [(40 + i, 50) for i in range(9)]
    assert len(again) == 9
    assert batches.chunk_size == 2
    assert [record.args for record in caplog.records] == [(9, 4), (4, 2)]
    small_memory.most_images = 99
    for _ in range(2 * REGROWTH + 9):
        batches.predict(prepared, [None] * 9)
    assert batches.chunk_size == 9


def test_other_errors_are_not_taken_for_a_lack_of_memory(small_memory: SmallMemory) -> None:
    small_memory.error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        OomSafeBatches(small_memory, 9, 16).predict(prepared_images(small_memory, 3), [None] * 3)


def test_panoramas_go_fewer_at_a_time(small_memory: SmallMemory) -> None:
    small_memory.most_images = 8
    sizes = []
    predict = small_memory.predict
    small_memory.predict = lambda prepared, *options: sizes.append(len(prepared)) or predict(prepared, *options)  # type: ignore[method-assign,func-returns-value]
    panorama = small_memory.inputs.prepare(Image.new("RGB", (4000, 50)), seed=0)
    assert panorama.clip.size // (3 * 16**2) > 1000
    usual = prepared_images(small_memory, 8)
    with patch("cluster.actors.USUAL_PATCHES", 500):
        OomSafeBatches(small_memory, 8, 16).predict([*usual, panorama, panorama, panorama, *usual], [None] * 19)
    assert sizes == [8, 1, 1, 1, 8]


class NotFinite(SmallMemory):
    """Gives every second image a score that is no number."""

    most_images = 99

    def predict(self, prepared: Sequence[Prepared], *options: Any) -> list[Prediction]:
        found = super().predict(prepared, *options)
        for prediction in found[1::2]:
            prediction.scores[0] = np.nan
        return found


@pytest.mark.usefixtures("ray_here")
def test_scores_that_are_not_finite_are_a_failure(small_memory: SmallMemory) -> None:
    small_memory.__class__ = NotFinite
    prepare = Preparer(small_memory.inputs, DEFAULT_LIMITS)
    rows = [prepare(Record(f"{i}.jpg", f"{i}.jpg", f"{i}.jpg", jpeg(i))) for i in range(3)]
    labeller = Labeller.__new__(Labeller)
    labeller.encoder, labeller.inputs = AnnotationEncoder(small_memory.settings, ["b"]), small_memory.inputs
    labeller.batches, labeller.counter = OomSafeBatches(small_memory, 8, 16), start_counter()
    labelled = labeller(pa.Table.from_pylist(rows, PREPARED_SCHEMA)).to_pylist()
    assert [row["status"] for row in labelled] == [Status.OK, Status.BAD_SCORES, Status.OK]
    assert labelled[1]["error"].startswith("1.jpg: the models gave scores that are no finite numbers")
    assert labelled[1]["class_scores"] is None
    assert ray.get(labeller.counter.get.remote()) == {"ok": 2, "failed": 1}


def test_an_image_that_does_not_fit_alone_has_no_prediction(small_memory: SmallMemory) -> None:
    small_memory.most_images = 0
    prepared = small_memory.inputs.prepare(Image.new("RGB", (50, 40)), seed=0)
    found = OomSafeBatches(small_memory, 4, 16).predict([prepared] * 4, [None] * 4)
    assert found == [None] * 4
