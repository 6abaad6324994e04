"""What cannot be present needs no compensation: labels stay the same, and the diffusion model has less to do."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cliper.coarse import Queries
from cliper.diffusion import DiffusionModel
from cliper.groups import Groups
from cliper.labels import class_scores
from cliper.pipeline import Cliper
from cliper.segmenter import Prediction
from cliper.settings import MethodSettings
from tests.cliper.test_pipeline import BASE, build, some_image, some_queries
from tests.support.stages import prepare

FORMATS = [torch.float32, torch.bfloat16]


class Models(NamedTuple):
    """What does not depend on settings."""

    cliper: Cliper
    half: DiffusionModel

    def with_settings(self, queries: Queries, half: bool = False, batch: int | None = None, **changes: Any) -> Cliper:
        diffusion = self.half if half else self.cliper.affinity
        return Cliper(self.cliper.tower, queries, MethodSettings(**BASE | changes), diffusion, batch)


@pytest.fixture(scope="module")
def models(tiny_clip: Path, tiny_diffusion: Path) -> Models:
    cliper, other = (build(tiny_clip, tiny_diffusion) for _ in range(2))
    assert isinstance(other.affinity, DiffusionModel)
    other.affinity.vae.bfloat16(), other.affinity.unet.bfloat16()
    return Models(cliper, other.affinity)


@cache
def images(count: int) -> list[np.ndarray]:
    """Of two shapes."""
    return [some_image(70, 100 if seed % 3 else 70, seed) for seed in range(count)]


def assert_same_labels(before: list[Prediction], after: list[Prediction]) -> None:
    for one, other in zip(before, after, strict=True):
        assert one.refined is None
        assert other.refined is not None
        assert np.array_equal(one.runs.starts, other.runs.starts)
        assert np.array_equal(one.runs.labels, other.runs.labels)


@given(
    score_threshold=st.floats(0.0, 2.0),
    preset=st.sampled_from(["release", "paper", "open"]),
    compensation=st.sampled_from(["product", "mean", "head"]),
    words=st.integers(0, 99),
    half=st.booleans(),
)
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_labels_stay_and_scores_are_bounds(
    score_threshold: float, preset: Any, compensation: Any, words: int, half: bool, models: Models
) -> None:
    """In half precision too, where refined values could round to more than the largest coarse one."""
    changes = {"preset": preset, "compensation": compensation, "score_threshold": score_threshold}
    if preset == "open":
        changes |= {"presence_midpoint": max(score_threshold, 1e-3)}
    queries = some_queries(seed=words)
    plain, thrifty = (models.with_settings(queries, half, **changes, skip_absent=skip) for skip in (False, True))
    prepared = prepare(plain.inputs, images(3), range(3))
    before, after = ([one for image in prepared for one in of.predict([image])] for of in (plain, thrifty))
    assert_same_labels(before, after)
    coarse = [plain.maps([image]).coarse[0] for image in prepared]
    for one, other, maps in zip(before, after, coarse, strict=True):
        assert other.refined is not None
        highest = maps.flatten(1).amax(dim=1).numpy()
        assert (one.scores <= highest).all(), "refined values are means of coarse ones"
        left_out = np.setdiff1d(np.arange(3), other.refined)
        assert np.array_equal(other.scores[left_out], highest[left_out])
        assert np.array_equal(other.scores[other.refined], one.scores[other.refined])
        present = np.unique(one.runs.labels[one.runs.labels > 0]) - 1
        assert set(present) <= set(other.refined), "a class that is present was left out"


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_does_not_lift_a_score_above_the_coarse_maximum(dtype: torch.dtype) -> None:
    coarse = torch.tensor([[[[0.3, 0.1]], [[0.7, 0.7]]]])
    refined = torch.tensor([[[[0.2, 0.1]], [[0.7, 0.7]]]]).to(dtype).float() * (1 + 2**-8)
    scores = class_scores(Groups.together(coarse), Groups.together(refined))
    assert (scores <= coarse.amax(dim=(2, 3))).all()


def test_given_labels_are_refined_whatever_their_scores(models: Models) -> None:
    queries = some_queries()
    plain, thrifty = (models.with_settings(queries, score_threshold=9.0, skip_absent=skip) for skip in (False, True))
    prepared, allowed = prepare(plain.inputs, images(2), range(2)), [{0, 2}, None]
    after = thrifty.predict(prepared, allowed)
    assert_same_labels(plain.predict(prepared, allowed), after)
    assert [one.refined for one in after] == [[0, 2], []]
    assert len(np.unique(after[0].runs.labels)) > 1


def test_the_diffusion_model_sees_full_batches_of_images_that_may_show_a_class(models: Models) -> None:
    queries, count = some_queries(), 9
    plain = models.with_settings(queries, score_threshold=0.0)
    prepared = prepare(plain.inputs, images(count), range(count))
    highest = sorted(float(maps.max()) for maps in plain.maps(prepared).coarse)
    threshold = (highest[3] + highest[4]) / 2  # five of nine can show a class
    plain = models.with_settings(queries, score_threshold=threshold)
    thrifty = models.with_settings(queries, batch=4, score_threshold=threshold, skip_absent=True)
    assert thrifty.largest_batch >= count
    assert isinstance(thrifty.affinity, DiffusionModel)
    encode = thrifty.affinity.encoder.plain
    with patch.object(encode, "forward", wraps=encode.forward) as passes:
        after = thrifty.predict(prepared)
    assert [len(call.args[0]) for call in passes.call_args_list] == [4, 4], "the second batch is filled up"
    assert sum(bool(one.refined) for one in after) == 5
    assert_same_labels(plain.predict(prepared), after)


def test_a_batch_is_filled_up_and_no_larger_than_the_memory_allows(models: Models) -> None:
    queries = some_queries()
    cliper = models.with_settings(queries, batch=4)
    prepared = prepare(cliper.inputs, images(3), range(3))
    expected = models.with_settings(queries).predict(prepared)
    assert isinstance(cliper.affinity, DiffusionModel)
    encode = cliper.affinity.encoder.plain
    for largest, sizes in [(4, [4]), (2, [2, 2]), (1, [1, 1, 1])]:
        cliper.largest_batch = largest
        with patch.object(encode, "forward", wraps=encode.forward) as passes:
            found = cliper.predict(prepared)
        assert [len(call.args[0]) for call in passes.call_args_list] == sizes
        for one, other in zip(expected, found, strict=True):
            assert np.allclose(one.scores, other.scores, rtol=1e-4)


@pytest.mark.parametrize("compensation", ["guided", "none"])
def test_without_a_diffusion_model_there_is_nothing_to_skip(compensation: Any) -> None:
    with pytest.raises(
        ValueError, match=f"skip_absent saves work of affinity diffusion: compensation {compensation} has none"
    ):
        MethodSettings(**BASE, compensation=compensation, skip_absent=True)
