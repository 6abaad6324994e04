"""The baselines as their authors evaluate them: the facts, and the arithmetic from image to labels."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cliper.baseline_settings import BaselineSettings
from cliper.baselines import Baseline
from cliper.coarse import Queries
from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.preprocess import InputSpec, resize_linear
from cliper.protocols import find_protocol
from cliper.published import find_benchmark, read_published
from cliper.text import TEMPLATE_SETS
from cliper.towers import resize_positions
from cliper.vision import VisionTower
from tests.cliper.test_baselines import METHODS, QUERIES, proxy_of, tower_of, write_tiny_dino
from tests.cliper.test_pipeline import CPU, some_image
from tests.reference.baselines import (
    literal_block,
    literal_input_of_last_block,
    literal_proxyclip,
    resize_positions_by_formula,
    rows_by_formula,
)
from tests.reference.literal import ClipWeights
from tests.support.stages import predict

PHOTOS, REAL_CLIP = os.environ.get("CLIPER_PHOTOS"), os.environ.get("CLIPER_REAL_CLIP")
BY_DATASET = ("shorter_side_px", "crop_px", "stride_px", "logit_scale", "background_threshold")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", read_published())
def test_every_protocol_is_complete(name: str, method: Any) -> None:
    protocol, benchmark = find_protocol(method, name), find_benchmark(name)
    assert len(protocol.queries) == len(benchmark.classes)
    assert protocol.templates in TEMPLATE_SETS
    assert protocol.settings.harness == "published"
    assert bool(protocol.background_queries) == (benchmark.has_background and method != "maskclip")
    assert protocol.settings.background_threshold == 0 or benchmark.has_background


@pytest.mark.parametrize(
    ("method", "name", "expected"),
    [
        ("sclip", "voc21", (336, 224, 112, 65, 0.1)),
        ("sclip", "context60", (336, 224, 112, 50, 0.1)),
        ("sclip", "coco_object", (336, 224, 112, 50, 0.1)),
        ("sclip", "ade20k", (336, 224, 112, 40, 0)),
        ("sclip", "coco_stuff", (448, 224, 112, 40, 0)),
        ("sclip", "cityscapes", (560, 224, 112, 40, 0)),
        ("clip", "cityscapes", (560, 224, 112, 40, 0)),
        ("clearclip", "voc21", (448, 448, 224, 50, 0.5)),
        ("clearclip", "context60", (448, 448, 224, 50, 0.15)),
        ("clearclip", "coco_object", (448, 448, 224, 50, 0.4)),
        ("clearclip", "cityscapes", (448, 224, 224, 50, 0)),
        ("proxyclip", "voc21", (336, 336, 112, 40, 0.2)),
        ("proxyclip", "context60", (336, 336, 112, 40, 0.15)),
        ("proxyclip", "coco_object", (336, 336, 112, 40, 0.25)),
        ("proxyclip", "ade20k", (448, 336, 112, 40, 0)),
        ("proxyclip", "cityscapes", (448, 224, 112, 40, 0)),
        ("maskclip", "voc20", (512, 0, 112, 100, 0)),
    ],
)
def test_settings(method: Any, name: str, expected: tuple[float, ...]) -> None:
    settings = find_protocol(method, name).settings
    assert tuple(getattr(settings, setting) for setting in BY_DATASET) == expected
    assert settings.area_threshold == (0.1 if (method, name) == ("sclip", "voc21") else 0)


def test_words() -> None:
    assert find_protocol("sclip", "voc21").queries[14][:2] == ("person", "person in shirt")
    assert len(find_protocol("sclip", "coco_object").background_queries) == 26
    assert find_protocol("clearclip", "voc21").background_queries == ("background",)
    assert len(find_protocol("proxyclip", "coco_object").background_queries) == 17
    assert find_protocol("proxyclip", "voc21").queries[14] == ("person",)
    assert "word list was not found" in find_protocol("proxyclip", "ade20k").not_known


def test_linear_resizing_is_the_formula() -> None:
    image = some_image(70, 100)
    for size_hw in [(35, 50), (90, 40), (70, 100), (7, 130)]:
        values = torch.from_numpy(image).double()
        expected = rows_by_formula(rows_by_formula(values, size_hw[0]).transpose(0, 1), size_hw[1]).transpose(0, 1)
        found = resize_linear(Image.fromarray(image), size_hw)
        assert found.shape == (*size_hw, 3)
        assert np.abs(found - expected.numpy()).max() < 0.51


@pytest.mark.parametrize(
    ("image_hw", "expected"),
    [
        ((375, 500), (336, 448)),
        ((500, 375), (448, 336)),
        ((100, 150), (336, 504)),
        ((100, 1000), (205, 2048)),
        ((1, 9999), (1, 2048)),
    ],
)
def test_sides_are_not_rounded_to_patches(image_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert InputSpec(336, 16, longest_side_px=2048).clip_hw(image_hw) == expected


@pytest.mark.parametrize("grid_hw", [(7, 7), (14, 14), (7, 11), (30, 9)])
def test_positions_are_resized_as_the_official_releases_do(grid_hw: tuple[int, int]) -> None:
    positions = torch.randn(1 + 49, 5, generator=torch.Generator().manual_seed(0))
    found = resize_positions(positions, (7, 7), grid_hw, "bicubic")
    expected = resize_positions_by_formula(positions[1:].reshape(7, 7, 5), grid_hw, bicubic=True)
    assert torch.allclose(found[1:], expected.flatten(0, 1), atol=1e-5)
    assert torch.equal(found[0], positions[0])
    bilinear = resize_positions(positions, (7, 7), grid_hw, "bilinear")
    assert torch.equal(found, bilinear) == (grid_hw == (7, 7)), "the native grid keeps its positions"


def literal_dense(clip: ClipWeights, method: str, pixels: torch.Tensor, dino: Path, window: np.ndarray) -> torch.Tensor:
    """[grid_h, grid_w, dimensions] of a window of whole patches."""
    x = literal_input_of_last_block(clip, pixels, bicubic=True)
    if method == "proxyclip":
        tokens = literal_proxyclip(clip, x, dino, window, (pixels.shape[1], pixels.shape[2]))
    else:
        patches = literal_block(clip, f"transformer.resblocks.{clip.layers - 1}", x, method)[1:]
        tokens = patches.reshape(pixels.shape[1] // clip.patch, pixels.shape[2] // clip.patch, -1)
    return clip.layer_norm("ln_post", tokens) @ clip.tensors["proj"]


def literal_logits(
    tower: VisionTower, method: str, dino: Path, image: np.ndarray, settings: BaselineSettings, text: torch.Tensor
) -> torch.Tensor:
    """[queries, height, width] on the input's pixels: pixel by pixel the mean of the windows that hold it."""
    clip = ClipWeights.of(tower)
    height, width = InputSpec(settings.shorter_side_px, clip.patch, longest_side_px=2048).clip_hw(image.shape[:2])
    resized = resize_linear(Image.fromarray(image), (height, width))
    crop, stride = settings.crop_px, settings.stride_px
    windows = []
    for y in range((max(height - crop + stride - 1, 0)) // stride + 1):
        for x in range((max(width - crop + stride - 1, 0)) // stride + 1):
            bottom, right = min(y * stride + crop, height), min(x * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            window = resized[top:bottom, left:right]
            pixels = (torch.from_numpy(window).float() / 255 - torch.tensor(clip.mean)) / torch.tensor(clip.std)
            dense = literal_dense(clip, method, pixels.permute(2, 0, 1), dino, window)
            similarity = torch.stack([F.cosine_similarity(dense, row, dim=-1) for row in text])
            maps = rows_by_formula(similarity.transpose(0, 1), bottom - top).transpose(0, 1)
            maps = rows_by_formula(maps.permute(2, 0, 1), right - left).permute(1, 2, 0)
            windows.append((top, left, maps))
    result = torch.zeros(len(text), height, width)
    seen = torch.zeros(height, width)
    for top, left, maps in windows:
        result[:, top : top + maps.shape[1], left : left + maps.shape[2]] += maps
        seen[top : top + maps.shape[1], left : left + maps.shape[2]] += 1
    return settings.logit_scale * result / seen


@pytest.fixture(scope="module")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dino(tmp_path_factory.mktemp("models") / "dino")


def build(method: Any, tower: VisionTower, dino: Path, settings: BaselineSettings) -> Baseline:
    return Baseline(tower, QUERIES, method, settings, proxy_of(dino) if method == "proxyclip" else None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size_hw", [(64, 64), (70, 101)])
def test_windows_agree_with_a_transcription(
    size_hw: tuple[int, int], method: str, tiny_clip: Path, tiny_dino: Path
) -> None:
    settings = BaselineSettings("published", shorter_side_px=96, crop_px=64, stride_px=32, logit_scale=50.0)
    baseline = build(method, tower_of(tiny_clip), tiny_dino, settings)
    image = some_image(*size_hw)
    ours = baseline.logits(baseline.inputs.prepare(Image.fromarray(image), 0))
    theirs = literal_logits(baseline.tower, method, tiny_dino, image, settings, QUERIES.rows[:-1])
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_parts_of_patches_are_padded_on_both_sides(tiny_clip: Path, tiny_dino: Path) -> None:
    """The mean colour around an image of whole patches changes nothing but the place of its pixels."""
    tower = tower_of(tiny_clip)
    settings = BaselineSettings("published", shorter_side_px=70, logit_scale=50.0)
    baseline = build("sclip", tower, tiny_dino, settings)
    clip = torch.randn(1, 3, 70, 101, generator=torch.Generator().manual_seed(1))
    found = baseline.window_logits(clip, None)
    padded = torch.zeros(1, 3, 80, 112)
    padded[..., 5:75, 5:106] = clip
    assert torch.allclose(found, baseline.window_logits(padded, None)[:, 5:75, 5:106], atol=1e-5)
    assert found.shape == (7, 70, 101)


def test_classes_of_small_area_win_nothing(tiny_clip: Path, tiny_dino: Path) -> None:
    image, tower = some_image(), tower_of(tiny_clip)
    settings = BaselineSettings("published", shorter_side_px=96, crop_px=64)
    (every,) = predict(build("sclip", tower, tiny_dino, settings), [image], [0])
    areas = every.labels.flatten().bincount(minlength=4)[1:].double()
    won = areas[areas > 0].sort().values
    assert len(won) > 1, "the case is not worth testing without a smallest class"
    assert won[0] < won[1]
    threshold = float((won[0] + won[1]) / 2 / won.sum())
    (large,) = predict(build("sclip", tower, tiny_dino, replace(settings, area_threshold=threshold)), [image], [0])
    smallest = areas.tolist().index(won[0]) + 1
    assert (every.labels == smallest).any()
    assert not (large.labels == smallest).any()
    assert torch.equal(large.labels[every.labels != smallest], every.labels[every.labels != smallest])


@pytest.mark.skipif(not (PHOTOS and REAL_CLIP), reason="CLIPER_PHOTOS and CLIPER_REAL_CLIP are not set")
@pytest.mark.parametrize("method", METHODS)
def test_real_tower_at_native_and_other_grids(method: Any, tiny_dino: Path) -> None:
    """OpenAI's ViT-B/16 on a photograph: at 224 x 224 px, not square, in windows at the authors' size. ProxyCLIP has
    a second model of random weights."""
    tower = load_vision_tower(find_clip(f"local-dir:{REAL_CLIP}/clip"), CPU, torch.float32)
    text = F.normalize(torch.randn(5, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    queries = Queries.build(text, torch.zeros(0, 512), torch.arange(5))
    photograph = np.array(Image.open(sorted(Path(PHOTOS or "").glob("images/*"))[0]).convert("RGB"))
    native = resize_linear(Image.fromarray(photograph), (224, 224))
    for image, settings in [
        (native, BaselineSettings("published", shorter_side_px=224, crop_px=224)),
        (photograph[:224, :160], BaselineSettings("published", shorter_side_px=160, crop_px=224)),
        (photograph, find_protocol(method, "voc20").settings),
    ]:
        if settings.crop_px == 0:
            settings = replace(settings, crop_px=448, shorter_side_px=448)
        proxy = proxy_of(tiny_dino) if method == "proxyclip" else None
        baseline = Baseline(tower, queries, method, settings, proxy)
        ours = baseline.logits(baseline.inputs.prepare(Image.fromarray(image), 0))
        theirs = literal_logits(tower, method, tiny_dino, image, settings, text)
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
