"""The package against the literal transcription, over every setting."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cliper.coarse import Queries
from cliper.diffusion import DiffusionModel
from cliper.loading import load_diffusion, load_vision_tower
from cliper.models import find_clip, find_diffusion
from cliper.pipeline import Cliper
from cliper.settings import MethodSettings
from tests.reference import literal
from tests.support.stages import run_stages
from tests.support.tiny import write_tiny_clip

CPU = torch.device("cpu")
CLASS_OF_ROW = [0, 1, 1, 2]
BASE = {
    "shorter_side_px": 112,
    "select_layer": -1,
    "logit_scale": 40.0,
    "attention_threshold": 0.1,
    "score_threshold": 0.2,
    "background_threshold": 0.3,
}


def some_image(height: int = 70, width: int = 100, seed: int = 0) -> np.ndarray:
    """Smooth colours with a sharp square: enough structure for attention to differ between patches."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0.3, 2, (3, 3))]
    image = ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)
    image[height // 3 : height // 2, width // 3 : width // 2] = rng.integers(0, 256, 3)
    return image


def some_queries(dimensions: int = 16, seed: int = 1) -> Queries:
    rows = torch.nn.functional.normalize(
        torch.randn(7, dimensions, generator=torch.Generator().manual_seed(seed)), dim=-1
    )
    return Queries.build(rows[:4], rows[4:], torch.tensor(CLASS_OF_ROW))


def build(clip: Path, diffusion: Path | None, **changes: Any) -> Cliper:
    settings = MethodSettings(**(BASE | changes))
    tower = load_vision_tower(find_clip(f"local-dir:{clip}"), CPU, torch.float32)
    model = None
    if settings.compensation != "none":
        assert diffusion is not None
        prompt = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(2))
        model = load_diffusion(find_diffusion(str(diffusion)), prompt, CPU, torch.float32)
    return Cliper(tower, some_queries(), settings, model)


def assert_agrees(cliper: Cliper, image: np.ndarray, allowed: set[int] | None = None) -> None:
    noise = cliper.affinity.noise(5) if isinstance(cliper.affinity, DiffusionModel) else None
    (ours,) = run_stages(cliper, [image], [5], allowed=[allowed])
    rows = cliper.queries.rows
    theirs = literal.annotate(
        literal.ClipWeights.of(cliper.tower),
        (rows[:4], rows[4:-1], CLASS_OF_ROW),
        cliper.settings,
        image,
        cliper.affinity,
        None if noise is None else noise[None],
        allowed,
    )
    for stage in ("attention", "coarse", "refined", "scores"):
        mine, other = getattr(ours, stage), getattr(theirs, stage)
        assert mine.shape == other.shape, stage
        assert (mine - other).abs().max() < 1e-4 * other.abs().max(), stage
    assert (ours.labels == theirs.labels).float().mean() > 0.999
    assert len(ours.labels.unique()) > 1, "the case is not worth testing if one label covers everything"


SETTINGS: list[dict[str, Any]] = [
    {},
    {"preset": "paper", "score_threshold": 0.1},
    {"preset": "paper", "compensation": "none", "select_layer": -3},
    {"early_embeddings": False, "score_threshold": 0.1},
    {"early_embeddings": False, "select_layer": -3, "score_threshold": 0.1},
    {"select_layer": -2},
    {"select_layer": 0},
    {"compensation": "mean"},
    {"compensation": "head", "head": 0},
    {"compensation": "head", "head": 3},
    {"compensation": "none"},
    {"normalize_maps": False, "background_threshold": 0.5, "compensation": "none"},
    {"background_threshold": 0.0, "score_threshold": 0.0},
    {"background_threshold": 0.0, "score_threshold": 0.0, "normalize_maps": False, "compensation": "none"},
    {"attention_threshold": 0.4},
    {"attention_threshold": 0.0},
    {"shorter_side_px": 160, "compensation": "none"},
    {"shorter_side_px": 224, "windows": "average", "sliding_crop_px": 112, "compensation": "none"},
    {"shorter_side_px": 160, "windows": "average", "sliding_crop_px": 224, "compensation": "none"},
    {"shorter_side_px": 224, "windows": "average", "sliding_crop_px": 160, "early_embeddings": False},
    {"shorter_side_px": 224, "windows": "stitched", "sliding_crop_px": 112},
    {"shorter_side_px": 160, "windows": "stitched", "compensation": "none"},
    {"shorter_side_px": 224, "windows": "stitched", "sliding_crop_px": 80, "preset": "paper", "score_threshold": 0.1},
    {"shorter_side_px": 192, "windows": "stitched", "sliding_crop_px": 96, "attention": "query-query"},
    {"shorter_side_px": 160, "scales": (0.75, 1.0, 1.5), "compensation": "none"},
    {"shorter_side_px": 160, "scales": (1.3, 0.5), "flip": True},
    {"shorter_side_px": 160, "flip": True, "windows": "average", "sliding_crop_px": 112},
    *[
        {"attention": attention, "early_embeddings": early, "compensation": "none", "score_threshold": 0.0}
        for attention in ("query-query", "key-key", "value-value", "query-key", "identity")
        for early in (True, False)
    ],
]


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()) or "default")
def test_agrees_with_the_literal_transcription(changes: dict[str, Any], tiny_clip: Path, tiny_diffusion: Path) -> None:
    assert_agrees(build(tiny_clip, tiny_diffusion, **changes), some_image())


@pytest.mark.parametrize("size_hw", [(70, 100), (100, 70), (64, 64), (31, 200)])
def test_agrees_on_other_shapes(size_hw: tuple[int, int], tiny_clip: Path, tiny_diffusion: Path) -> None:
    assert_agrees(build(tiny_clip, tiny_diffusion), some_image(*size_hw))


def test_agrees_with_patches_of_14_and_plain_gelu(tmp_path: Path, tiny_diffusion: Path) -> None:
    clip = write_tiny_clip(tmp_path, patch=14, layers=3, quick_gelu=False)
    cliper = build(clip, tiny_diffusion, windows="average", sliding_crop_px=112, shorter_side_px=168)
    assert_agrees(cliper, some_image())


def test_only_allowed_classes_win(tiny_clip: Path, tiny_diffusion: Path) -> None:
    cliper = build(tiny_clip, tiny_diffusion, score_threshold=0.0)
    image = some_image()
    free = run_stages(cliper, [image], [5])[0]
    winner = int(free.labels.flatten().mode().values)
    others = {0, 1, 2} - {winner - 1}
    assert_agrees(cliper, image, allowed=others)
    bound = run_stages(cliper, [image], [5], allowed=[others])[0]
    assert winner not in bound.labels.unique()
    assert torch.equal(bound.scores, free.scores)


def test_a_given_class_needs_no_score(tiny_clip: Path, tiny_diffusion: Path) -> None:
    cliper = build(tiny_clip, tiny_diffusion, score_threshold=10.0)
    image = some_image()
    assert run_stages(cliper, [image], [5])[0].labels.unique().tolist() == [0]
    assert_agrees(cliper, image, allowed={0, 2})
    given = run_stages(cliper, [image], [5], allowed=[{0, 2}])[0]
    assert set(given.labels.unique().tolist()) - {0} == {1, 3}


def test_images_in_one_batch_do_not_touch_each_other(tiny_clip: Path, tiny_diffusion: Path) -> None:
    cliper = build(tiny_clip, tiny_diffusion)
    images = [some_image(70, 100, 1), some_image(100, 70, 2), some_image(70, 100, 3), some_image(64, 64, 4)]
    together = run_stages(cliper, images, [1, 2, 3, 4])
    for image, seed, result in zip(images, [1, 2, 3, 4], together, strict=True):
        (alone,) = run_stages(cliper, [image], [seed])
        assert torch.allclose(alone.refined, result.refined, rtol=1e-4, atol=1e-5)
        assert (alone.labels == result.labels).float().mean() > 0.999


def test_noise_depends_on_the_seed_alone(tiny_clip: Path, tiny_diffusion: Path) -> None:
    cliper = build(tiny_clip, tiny_diffusion)
    image = some_image()
    first, again, other = run_stages(cliper, [image] * 3, [1, 1, 2])
    assert torch.equal(first.coarse, other.coarse)
    assert torch.allclose(first.refined, again.refined)
    assert not torch.allclose(first.refined, other.refined)


def test_annotating_changes_no_weight_and_no_input(tiny_clip: Path, tiny_diffusion: Path) -> None:
    cliper = build(tiny_clip, tiny_diffusion)
    image = some_image()
    before = {name: tensor.clone() for name, tensor in cliper.tower.model.state_dict().items()}
    first = run_stages(cliper, [image], [1])[0]
    again = run_stages(cliper, [image], [1])[0]
    assert np.array_equal(image, some_image())
    assert torch.equal(first.labels, again.labels)
    assert all(torch.equal(before[name], tensor) for name, tensor in cliper.tower.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision_agrees_with_full(dtype: torch.dtype, tiny_clip: Path, tiny_diffusion: Path) -> None:
    full = build(tiny_clip, tiny_diffusion)
    tower = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), CPU, dtype)
    assert isinstance(full.affinity, DiffusionModel)
    diffusion = load_diffusion(find_diffusion(str(tiny_diffusion)), full.affinity.empty_prompt, CPU, dtype)
    half = Cliper(tower, some_queries(), full.settings, diffusion)
    image = some_image()
    ours, theirs = run_stages(half, [image], [1])[0], run_stages(full, [image], [1])[0]
    assert ours.scores.dtype == torch.float32
    assert (ours.labels == theirs.labels).float().mean() > 0.9


def test_compensation_needs_a_diffusion_model(tiny_clip: Path) -> None:
    tower = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), CPU, torch.float32)
    with pytest.raises(ValueError, match="needs a model: affinity diffusion"):
        Cliper(tower, some_queries(), MethodSettings(**BASE))


def test_embeddings_of_another_width_are_refused(tiny_clip: Path) -> None:
    tower = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), CPU, torch.float32)
    with pytest.raises(ValueError, match="8 dimensions, the image tower has 16"):
        Cliper(tower, some_queries(8), MethodSettings(**BASE, compensation="none"))
