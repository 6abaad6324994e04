"""Visual queries against a literal computation, and what they do to logits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cliper.coarse import Queries, query_logits, visual_evidence
from cliper.examples import Example, Examples
from cliper.fusion import fuse
from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.pipeline import Cliper
from cliper.settings import VIT_B_16, MethodSettings
from cliper.specs import build_queries
from cliper.vision import VisionTower
from cliper.visual import ALONE, DOUBT, EVIDENCE, SHRINKAGE, queries_from, visual_queries
from schemas.embeddings import VisualQueries, VocabularyEmbeddings
from tests.support.stages import prepare

SETTINGS = MethodSettings(**vars(VIT_B_16) | {"shorter_side_px": 64, "compensation": "none"})


@pytest.fixture
def tower(tiny_clip: Path) -> VisionTower:
    return load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), torch.device("cpu"), torch.float32)


def some_examples() -> Examples:
    rng = np.random.default_rng(0)
    images = tuple(
        Example(
            rng.integers(0, 256, (64, 16 * columns, 3), dtype=np.uint8),
            rng.random((2, 4 * columns), dtype=np.float32) ** 20,
        )
        for columns in (4, 5, 6)
    )
    return Examples(("cat", "dog"), images, "")


def embeddings_with(
    visual: VisualQueries | None, names: tuple[str, ...] = ("cat", "cow", "dog")
) -> VocabularyEmbeddings:
    rows = np.random.default_rng(1).normal(size=(len(names) + 2, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return VocabularyEmbeddings(rows[:-2], names, rows[-2:], ("sky", "wall"), visual)


def test_a_literal_computation(tower: VisionTower) -> None:
    """Patch by patch, with numpy, for two of four features."""
    examples = some_examples()
    found = visual_queries(tower, examples, SETTINGS, wordless=("dog",))
    patches: list[list[np.ndarray]] = [[], []]
    for example in examples.images:
        pixels = tower.normalize(torch.tensor(example.clip).permute(2, 0, 1)[None])
        dense = fuse(tower, pixels, SETTINGS).dense[2:, 0].double()
        for feature, of_feature in enumerate(dense):
            patches[feature] += [(patch / patch.norm()).numpy() for patch in of_feature]
    shares = np.concatenate([example.shares for example in examples.images], axis=1)
    rows = np.zeros((2, 2, 16))
    means = [np.mean(of_feature, axis=0) for of_feature in patches]
    distance = np.zeros(2)
    for feature, of_feature in enumerate(patches):
        covariance = np.mean([np.outer(patch - means[feature], patch - means[feature]) for patch in of_feature], axis=0)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / 16 * np.eye(16)
        for label in range(2):
            apart = np.average(of_feature, axis=0, weights=shares[label]) - means[feature]
            rows[feature, label] = np.linalg.inv(shrunk) @ apart
            distance[label] += apart @ rows[feature, label]
    logits = np.array([EVIDENCE, ALONE])
    rows *= (logits / distance)[:, None]
    offsets = [-sum(rows[feature, label] @ means[feature] for feature in range(2)) for label in range(2)]
    assert found.names == ("cat", "dog")
    np.testing.assert_allclose(found.rows, rows, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.offsets, offsets - DOUBT * logits, rtol=1e-3, atol=1e-3)


def test_evidence_of_the_mean_patch_and_of_a_class() -> None:
    rng = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 200, 8, generator=rng) + 1
    patches[:, :40, 0] += 3
    features = F.normalize(patches, dim=-1)
    shares = np.zeros((1, 200), np.float32)
    shares[0, :40] = 1
    visual = queries_from([(features, shares)], ("cat",))
    evidence = (features @ torch.tensor(visual.rows).mT).sum(dim=0)[:, 0] + visual.offsets[0]
    assert evidence.mean() == pytest.approx(-DOUBT * EVIDENCE, abs=1e-3)
    assert evidence[:40].mean() == pytest.approx((1 - DOUBT) * EVIDENCE, abs=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_examples_with_nothing_but_the_class_have_no_evidence(noise: float) -> None:
    features = F.normalize(torch.ones(2, 30, 8) + noise * torch.randn(2, 30, 8), dim=-1)
    visual = queries_from([(features, np.ones((1, 30), np.float32))], ("cat",))
    evidence = (features @ torch.tensor(visual.rows).mT).sum(dim=0)[:, 0] + visual.offsets[0]
    assert evidence.tolist() == pytest.approx([-DOUBT * EVIDENCE] * 30, abs=1e-3)


@pytest.mark.parametrize("preset", ["open", "release"])
def test_evidence_is_added_to_all_queries_of_a_class(preset: str) -> None:
    rng = np.random.default_rng(2)
    visual = VisualQueries(("dog", "cat"), rng.normal(size=(2, 2, 16)).astype(np.float32), np.float32([1, -1]))
    queries = build_queries(embeddings_with(visual, ("cat", "cow", "dog", "dog")), preset)
    dense = torch.randn(3, 2, 5, 16)
    evidence = visual_evidence(dense, queries)
    assert evidence is not None
    assert evidence.shape == query_logits(dense[0], queries, 1.0).shape
    late = F.normalize(dense[1:], dim=-1)
    for place, name in enumerate(["cat", "cow", "dog"]):
        expected = torch.zeros(2, 5)
        if name in visual.names:
            row = visual.names.index(name)
            expected = sum(late[k] @ torch.tensor(visual.rows[k, row]) for k in range(2)) + visual.offsets[row]
        own = evidence[:, : len(queries.class_of_row)][:, queries.class_of_row == queries.class_order[place]]
        assert own.shape[1] == (2 if name == "dog" else 1)
        assert torch.allclose(own, expected[:, None].expand_as(own), atol=1e-5)
    assert not evidence[:, len(queries.class_of_row) :].any()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"windows": "average", "sliding_crop_px": 48},
        {"windows": "stitched", "sliding_crop_px": 48},
        {"early_embeddings": False},
    ],
)
def test_a_class_gains_where_its_examples_say_so(changes: dict[str, object], tower: VisionTower) -> None:
    settings = replace(SETTINGS, **changes)
    examples = some_examples()
    visual = visual_queries(tower, examples, settings)
    pixels = examples.images[0].clip
    maps = []
    for shown in (None, visual):
        cliper = Cliper(tower, build_queries(embeddings_with(shown), "release"), settings)
        maps.append(cliper.maps(prepare(cliper.inputs, [pixels], [0])).coarse[0])
    assert not torch.equal(*maps)
    assert torch.isfinite(maps[1]).all()


def test_without_examples_nothing_is_added() -> None:
    assert visual_evidence(torch.randn(3, 1, 4, 16), build_queries(embeddings_with(None), "open")) is None
    assert Queries.build(torch.eye(2), torch.eye(2), torch.tensor([0, 1])).to(torch.device("cpu")).visual is None
