"""Preset open: words as alternatives, probabilities of presence, outlines sharpened by the image."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cliper.coarse import HEAD_START, Queries, class_maps, lost_to, query_logits
from cliper.compensation import guided
from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.pipeline import Cliper
from cliper.published import PROFILES, find_benchmark, profile_settings
from cliper.segmenter import Prediction
from cliper.settings import VIT_B_16, MethodSettings, presence_probability
from cliper.text import WORLD_WORDS, same_meaning
from cliper.vision import VisionTower
from tests.support.stages import prepare
from tests.support.tiny import write_tiny_clip

DIMENSIONS = 16
OPEN = MethodSettings(
    **vars(VIT_B_16)
    | {"preset": "open", "compensation": "guided", "shorter_side_px": 112}
    | {"presence_midpoint": 0.02, "logit_scale": 40.0}
)


def random_rows(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed)), dim=-1)


CLASSES, BACKGROUND = random_rows(4, 1), random_rows(WORLD_WORDS, 2)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> VisionTower:
    folder = write_tiny_clip(tmp_path_factory.mktemp("open") / "clip")
    return load_vision_tower(find_clip(f"local-dir:{folder}"), torch.device("cpu"), torch.float32)


def label(tower: VisionTower, classes: Tensor, class_of_row: list[int], background: Tensor) -> Prediction:
    queries = Queries.build_open(classes, background, torch.tensor(class_of_row))
    cliper = Cliper(tower, queries, OPEN)
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return cliper.predict(prepare(cliper.inputs, [image], [0]))[0]


def assert_same(first: Prediction, second: Prediction) -> None:
    assert np.array_equal(first.scores, second.scores)
    assert np.array_equal(first.runs.starts, second.runs.starts)
    assert np.array_equal(first.runs.labels, second.runs.labels)


class TestWords:
    def test_the_method_finds_something(self, tower: VisionTower) -> None:
        found = label(tower, CLASSES, [0, 1, 2, 3], BACKGROUND)
        assert 0 < len(set(found.runs.labels) - {0}) < 4, found.scores

    def test_a_query_written_twice_changes_nothing(self, tower: VisionTower) -> None:
        twice = torch.cat([CLASSES[:2], CLASSES[1:2], CLASSES[2:]])
        first = label(tower, CLASSES, [0, 1, 2, 3], BACKGROUND)
        assert_same(first, label(tower, twice, [0, 1, 1, 2, 3], torch.cat([BACKGROUND, BACKGROUND[:2]])))

    @given(order=st.permutations(range(4)))
    @settings(max_examples=8, deadline=None)
    def test_the_order_of_the_vocabulary_changes_nothing(self, tower: VisionTower, order: list[int]) -> None:
        first = label(tower, CLASSES, [0, 1, 2, 3], BACKGROUND)
        other = label(tower, CLASSES[list(order)], [0, 1, 2, 3], BACKGROUND.flip(0))
        assert np.array_equal(first.scores[list(order)], other.scores)
        assert np.array_equal(first.runs.starts, other.runs.starts)
        new_label = np.array([0, *(1 + np.argsort(order))])
        assert np.array_equal(new_label[first.runs.labels], other.runs.labels)
        lost = first.lost_to[list(order)]  # type: ignore[index]
        assert np.array_equal(np.where(lost < 0, -1, len(BACKGROUND) - 1 - lost), other.lost_to)

    @given(seed=st.integers(0, 10_000))
    @settings(max_examples=30, deadline=None)
    def test_a_further_query_never_lowers_its_class(self, seed: int) -> None:
        dense = F.normalize(random_rows(50, seed), dim=-1)
        more = torch.cat([CLASSES, random_rows(1, seed + 1)])

        def maps(rows: Tensor, of: list[int]) -> Tensor:
            queries = Queries.build_open(rows, BACKGROUND, torch.tensor(of))
            return class_maps(query_logits(dense[None], queries, 60.0), queries)[0][queries.class_order]

        assert (maps(more, [0, 1, 2, 3, 0])[0] >= maps(CLASSES, [0, 1, 2, 3])[0] - 1e-6).all()

    def test_a_single_class_does_not_compete_with_itself(self) -> None:
        queries = Queries.build_open(CLASSES[:1], BACKGROUND[:0], torch.tensor([0]))
        assert (class_maps(torch.randn(1, 1, 5), queries) == 1).all()

    def test_words_near_the_mean_of_the_background_get_a_head_start(self) -> None:
        centre = F.normalize(BACKGROUND.mean(dim=0), dim=0)
        queries = Queries.build_open(torch.stack([centre, -centre]), BACKGROUND, torch.tensor([0, 1]))
        common, opposite = queries.head_start[queries.class_order]
        assert common - opposite == pytest.approx(2 * HEAD_START * float(BACKGROUND.mean(dim=0).norm()), rel=1e-4)
        assert queries.head_start[2:].mean() == pytest.approx(0, abs=1e-6)
        few = Queries.build_open(CLASSES, BACKGROUND[:-5], torch.arange(4))
        assert not few.head_start.any()
        assert Queries.build_open(BACKGROUND, CLASSES[:0], torch.arange(WORLD_WORDS)).head_start.any()

    def test_what_a_class_lost_to(self) -> None:
        queries = Queries.build_open(CLASSES[:2], BACKGROUND[:3], torch.tensor([0, 1]))
        coarse = torch.tensor([[[0.1, 0.9], [0.8, 0.2]]])
        maps = torch.tensor([[[0.0, 0.3], [0.6, 0.0]]])
        background = torch.tensor([[[0.1, 0.2], [0.2, 0.4], [0.1, 0.1]]])
        assert lost_to(coarse, maps, background, queries).tolist() == [[queries.background_order[1].item(), -1]]
        assert lost_to(coarse, maps, background[:, :0], queries).tolist() == [[-1, -1]]


def test_words_that_mean_the_same_are_those_that_point_the_same_way_beside_the_mean() -> None:
    common = torch.zeros(DIMENSIONS)
    common[0] = 5
    world = F.normalize(random_rows(300, 3) + common, dim=-1)
    near = F.normalize(world[:5] + 0.01 * random_rows(5, 4), dim=-1)
    same = same_meaning(world[:5], torch.cat([near, world[5:50]]), world)
    assert (world[:5] @ world[5:50].T).min() > 0.8, "all phrases look similar at first"
    assert torch.equal(same, torch.eye(5, 50, dtype=torch.bool))


class TestPresence:
    @given(
        threshold=st.floats(0.01, 0.99), midpoint=st.floats(0.05, 2), slope=st.floats(0.3, 20),
        scores=st.lists(st.floats(0, 2.5, width=32), min_size=1, max_size=20),
    )  # fmt: skip
    def test_a_class_is_present_from_the_presence_threshold_on(
        self, threshold: float, midpoint: float, slope: float, scores: list[float]
    ) -> None:
        chosen = {"presence_threshold": threshold, "presence_midpoint": midpoint, "presence_slope": slope}
        method = dataclasses.replace(OPEN, **chosen)
        limit = method.score_thresholds(1)[0]
        values = np.array(scores, np.float32)
        probabilities = method.probabilities(values)
        assert probabilities is not None
        clear = np.abs(values - limit) > 1e-4 * limit
        assert np.array_equal((values > limit)[clear], (probabilities >= threshold)[clear])

    def test_probabilities_grow_with_scores_from_0_to_1(self) -> None:
        probabilities = presence_probability(np.array([0, 1e-6, 0.2, 0.4, 1e6], np.float32), 0.2, 2.0)
        assert probabilities.tolist() == pytest.approx([0, 0, 0.5, 0.8, 1], abs=1e-6)

    def test_other_presets_have_none(self) -> None:
        release = dataclasses.replace(OPEN, preset="release")
        assert release.probabilities(np.ones(3)) is None
        assert release.score_thresholds(2) == (0.7, 0.7)

    def test_a_document_gives_the_settings_back(self) -> None:
        assert "score_threshold" not in OPEN.document()
        assert "presence_slope" not in dataclasses.replace(OPEN, preset="release").document()
        again = MethodSettings.from_document(OPEN.document() | {"precision": "fp32"})
        assert again.document() == OPEN.document()


class TestGuidedFilter:
    def test_an_outline_moves_to_the_edge_in_the_image(self) -> None:
        image = torch.zeros(1, 3, 168, 224, dtype=torch.uint8)
        image[..., 90:] = 255
        coarse = torch.zeros(1, 6, 8)
        coarse[..., 4:] = 1  # its edge is at 112 of 224
        sharp = guided(coarse, image)[0]
        blurred = F.interpolate(coarse[None], sharp.shape, mode="bilinear")[0, 0]
        assert sharp[84, 96] - sharp[84, 84] > 3 * (blurred[84, 96] - blurred[84, 84])

    def test_an_even_map_stays_even(self) -> None:
        image = torch.randint(0, 256, (1, 3, 112, 160), dtype=torch.uint8)
        assert torch.allclose(guided(torch.full((2, 7, 10), 0.3), image), torch.tensor(0.3), atol=1e-3)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_sets_what_its_benchmarks_share(profile: str) -> None:
    found = profile_settings(profile, 14)  # type: ignore[arg-type]
    assert found
    for name in PROFILES[profile]:  # type: ignore[index]
        assert found.items() <= vars(find_benchmark(name).encoder(14)).items()


def test_only_one_encoder_is_measured(tmp_path: Path) -> None:
    assert find_clip("demo").open_defaults.measured
    assert not find_clip(f"local-dir:{write_tiny_clip(tmp_path / 'clip')}").open_defaults.measured
