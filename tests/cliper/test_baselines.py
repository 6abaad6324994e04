"""The baselines against loop-like transcriptions, and the rules by which their labels are read out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from cliper import baselines, labels
from cliper.baseline_settings import BaselineSettings
from cliper.baselines import Baseline, competing_queries, most_probable
from cliper.coarse import Queries, class_maps
from cliper.loading import load_vision_tower
from cliper.models import ModelError, find_clip
from cliper.proxy import ProxyModel, check_plain, load_proxy, proxy_attention
from cliper.timm_models import hub_repository
from cliper.vision import VisionTower
from tests.cliper.test_models import COMMIT, put_in_hub_cache
from tests.cliper.test_pipeline import CLASS_OF_ROW, CPU, some_image, some_queries
from tests.reference.baselines import (
    DINO_MEAN,
    DINO_STD,
    literal_block,
    literal_input_of_last_block,
    literal_proxyclip,
    resize_by_formula,
)
from tests.reference.literal import ClipWeights, clip_pixels
from tests.support.stages import predict
from tests.support.tiny import write_tiny_clip, write_tiny_timm

METHODS = ["clip", "maskclip", "sclip", "clearclip", "proxyclip"]
SETTINGS = BaselineSettings(shorter_side_px=112)
QUERIES = some_queries(seed=8)
"""Every class and the background win somewhere in `some_image`, whatever the method."""


def write_tiny_dino(folder: Path, patch: int = 8, **changes: Any) -> Path:
    """A folder as timm writes it: width 24, two heads, with features that differ between patches."""
    pixels = {"mean": DINO_MEAN, "std": DINO_STD}
    sizes = {"patch_size": patch, "img_size": 8 * patch, "embed_dim": 24}
    return write_tiny_timm(folder, "vit_tiny_patch16_224", pretrained_cfg_overlay=pixels, **sizes | changes)


@pytest.fixture(scope="module")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dino(tmp_path_factory.mktemp("models") / "dino")


def proxy_of(folder: Path, dtype: torch.dtype = torch.float32) -> ProxyModel:
    return load_proxy(f"local-dir:{folder}", CPU, dtype)


def tower_of(clip: Path, dtype: torch.dtype = torch.float32) -> VisionTower:
    return load_vision_tower(find_clip(f"local-dir:{clip}"), CPU, dtype)


def build(method: str, clip: Path, dino: Path, settings: BaselineSettings = SETTINGS) -> Baseline:
    return Baseline(tower_of(clip), QUERIES, method, settings, proxy_of(dino) if method == "proxyclip" else None)


def literal_logits(method: str, tower: VisionTower, dino: Path, image: np.ndarray) -> torch.Tensor:
    """[class and background queries, grid_h, grid_w]."""
    clip = ClipWeights.of(tower)
    pixels = clip_pixels(clip, image, SETTINGS.shorter_side_px)
    input_hw = (pixels.shape[1], pixels.shape[2])
    x = literal_input_of_last_block(clip, pixels)
    if method == "proxyclip":
        patch = proxy_of(dino).patch_size_px
        grid_hw = tuple(round(side / patch) for side in input_hw)
        resized = Image.fromarray(image).resize((grid_hw[1] * patch, grid_hw[0] * patch), Image.Resampling.BICUBIC)
        tokens = literal_proxyclip(clip, x, dino, np.array(resized), input_hw)
    else:
        patches = literal_block(clip, f"transformer.resblocks.{clip.layers - 1}", x, method)[1:]
        tokens = patches.reshape(input_hw[0] // clip.patch, input_hw[1] // clip.patch, -1)
    dense = clip.layer_norm("ln_post", tokens) @ clip.tensors["proj"]
    text = QUERIES.rows[:-1]
    return torch.stack([SETTINGS.logit_scale * F.cosine_similarity(dense, row, dim=-1) for row in text])


def literal_labels(
    logits: torch.Tensor, image_hw: tuple[int, int], threshold: float, allowed: set[int]
) -> torch.Tensor:
    resized = resize_by_formula(logits.permute(1, 2, 0), image_hw)
    labels = torch.zeros(image_hw, dtype=torch.int32)
    for y in range(image_hw[0]):
        for x in range(image_hw[1]):
            probabilities = torch.softmax(resized[y, x], dim=0).tolist()
            own = {c: max(p for p, k in zip(probabilities, CLASS_OF_ROW, strict=False) if k == c) for c in allowed}
            best = max(own, key=own.__getitem__)
            if own[best] >= threshold and own[best] >= max(probabilities[len(CLASS_OF_ROW) :]):
                labels[y, x] = best + 1
    return labels


@pytest.mark.parametrize("size_hw", [(112, 112), (70, 100), (100, 70)])
@pytest.mark.parametrize("method", METHODS)
def test_logits_agree_with_a_loop_like_transcription(
    method: str, size_hw: tuple[int, int], tiny_clip: Path, tiny_dino: Path
) -> None:
    image = some_image(*size_hw)
    baseline = build(method, tiny_clip, tiny_dino)
    ours = baseline.logits(baseline.inputs.prepare(Image.fromarray(image), 0))
    theirs = literal_logits(method, baseline.tower, tiny_dino, image)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_patches_of_14_and_a_proxy_whose_patches_do_not_divide_them(tmp_path: Path) -> None:
    clip = write_tiny_clip(tmp_path / "clip", patch=14, quick_gelu=False)
    dino = write_tiny_dino(tmp_path / "dino", patch=16)
    image = some_image(70, 100)
    baseline = build("proxyclip", clip, dino)
    ours = baseline.logits(baseline.inputs.prepare(Image.fromarray(image), 0))
    theirs = literal_logits("proxyclip", baseline.tower, dino, image)
    assert ours.shape == theirs.shape == (7, 7, 10)  # 112 x 154 pixels for CLIP, 112 x 160 for DINO
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_clip_is_open_clips_own_forward(tiny_clip: Path, tiny_dino: Path) -> None:
    image = some_image(112, 112)
    baseline = build("clip", tiny_clip, tiny_dino)
    model = baseline.tower.model
    model.output_tokens = True
    with torch.no_grad():
        _, tokens = model(clip_pixels(ClipWeights.of(baseline.tower), image, 112)[None])
        dense = F.normalize(tokens[0] @ model.proj, dim=-1)
    expected = 40.0 * (dense @ F.normalize(QUERIES.rows[:-1], dim=-1).T).T.reshape(7, 7, 7)
    assert torch.allclose(baseline.logits(baseline.inputs.prepare(Image.fromarray(image), 0)), expected, atol=1e-4)


def test_methods_differ(tiny_clip: Path, tiny_dino: Path) -> None:
    image = some_image()
    scores = torch.stack([predict(build(m, tiny_clip, tiny_dino), [image], [0])[0].scores for m in METHODS])
    assert len(scores.round(decimals=3).unique(dim=0)) == len(METHODS)


@pytest.mark.parametrize("threshold", [0.0, 0.6])
@pytest.mark.parametrize("allowed", [None, {1}, {0, 2}])
@pytest.mark.parametrize("method", ["clearclip", "proxyclip"])
def test_labels_and_scores_follow_from_the_logits(
    method: str, allowed: set[int] | None, threshold: float, tiny_clip: Path, tiny_dino: Path
) -> None:
    image = some_image(35, 50)
    settings = BaselineSettings(shorter_side_px=112, background_threshold=threshold)
    baseline = build(method, tiny_clip, tiny_dino, settings)
    logits = baseline.logits(baseline.inputs.prepare(Image.fromarray(image), 0))
    (ours,) = predict(baseline, [image], [0], [allowed])
    theirs = literal_labels(logits, (35, 50), threshold, allowed or {0, 1, 2})
    assert ours.labels.dtype == torch.int32
    assert (ours.labels == theirs).float().mean() > 0.998
    assert len(ours.labels.unique()) > 1, "the case is not worth testing if one label covers everything"
    largest = logits.softmax(dim=0)[: len(CLASS_OF_ROW)].amax(dim=(1, 2))
    assert torch.allclose(ours.scores, torch.stack([largest[0], largest[1:3].max(), largest[3]]))


def pixel_label(
    probabilities: list[float], class_of_row: list[int], threshold: float = 0.0, barred: tuple[int, ...] = ()
) -> int:
    """The label of an image of one pixel whose queries have these probabilities (classes' first, then background)."""
    rows = torch.zeros(len(probabilities) + 1, 2)
    chosen = {"rows": rows, "class_of_row": torch.tensor(class_of_row), "classes": max(class_of_row) + 1}
    queries = replace(QUERIES, head_start=torch.zeros(len(rows)), **chosen)
    logits = torch.tensor(probabilities).log().view(-1, 1, 1)
    value, label = most_probable(logits, competing_queries(queries), queries.classes, (1, 1), barred)
    return int(label.masked_fill(value < threshold, 0))


@pytest.mark.parametrize(
    ("probabilities", "class_of_row", "threshold", "barred", "label"),
    [
        ([0.6, 0.4], [0, 1], 0.0, (), 1),
        ([0.4, 0.6], [0, 1], 0.0, (), 2),
        ([0.3, 0.4, 0.3], [0, 1], 0.0, (), 2),
        ([0.3, 0.3, 0.4], [0, 1], 0.0, (), 0),  # background wins
        ([0.4, 0.3, 0.3], [0, 1, 1], 0.0, (), 1),  # the maximum of two queries, not their sum
        ([0.3, 0.2, 0.5], [0, 1, 1], 0.0, (), 2),  # the better of two queries
        ([0.6], [0], 0.0, (), 1),
        ([0.4, 0.6], [0, 0], 0.0, (), 1),  # as many queries as classes and background together, were there one
        ([0.4, 0.3, 0.3], [0], 0.0, (), 1),  # background queries are not summed either
        ([0.6, 0.4], [0, 1], 0.7, (), 0),
        ([0.6, 0.4], [0, 1], 0.5, (), 1),
        ([0.5, 0.5], [0, 1], 0.5, (), 1),  # reaching the threshold is enough
        ([0.6, 0.4], [0, 1], 0.0, (0,), 2),
        ([0.6, 0.4], [0, 1], 0.5, (0,), 0),
        ([0.6, 0.1, 0.3], [0, 1], 0.0, (0,), 0),  # background competes with the classes that may win
        ([0.6, 0.3, 0.1], [0, 1], 0.0, (0,), 2),
        ([0.6, 0.4], [0, 1], 0.0, (0, 1), 0),  # nothing may win
    ],
)
def test_rules_of_the_readout(
    probabilities: list[float], class_of_row: list[int], threshold: float, barred: tuple[int, ...], label: int
) -> None:
    assert pixel_label(probabilities, class_of_row, threshold, barred) == label


@pytest.mark.parametrize("method", METHODS)
def test_the_row_for_anything_changes_nothing(method: str, tiny_clip: Path, tiny_dino: Path) -> None:
    baseline = build(method, tiny_clip, tiny_dino)
    image = some_image()
    first = predict(baseline, [image], [0])[0]
    strongest = QUERIES.rows[int(first.scores.argmax())]
    changed = replace(QUERIES, rows=torch.cat([QUERIES.rows[:-1], strongest[None]]))
    second = predict(Baseline(baseline.tower, changed, method, SETTINGS, baseline.proxy), [image], [0])[0]
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.scores, second.scores)


@pytest.mark.parametrize("block_rows", [9, 20, 69])
def test_blocks_of_rows_equal_the_whole(
    block_rows: int, tiny_clip: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = build("sclip", tiny_clip, tiny_dino)
    image = some_image(70, 100)
    whole = predict(baseline, [image], [0])[0].labels
    resized = F.interpolate(
        baseline.logits(baseline.inputs.prepare(Image.fromarray(image), 0))[None],
        (70, 100),
        mode="bilinear",
        align_corners=False,
    )[0]
    winner = torch.tensor([*CLASS_OF_ROW, -1, -1, -1])[resized.argmax(dim=0)] + 1
    assert (whole == winner).float().mean() > 0.999
    sizes = []

    def recording_class_maps(logits: torch.Tensor, queries: Queries) -> torch.Tensor:
        sizes.append(logits.numel())
        return class_maps(logits, queries)

    monkeypatch.setattr(labels, "CPU_BLOCK_VALUES", block_rows * 7 * 100)
    monkeypatch.setattr(baselines, "class_maps", recording_class_maps)
    assert (predict(baseline, [image], [0])[0].labels == whole).float().mean() > 0.999
    assert max(sizes) == block_rows * 7 * 100


def test_each_image_alone_with_its_own_allowed_classes(tiny_clip: Path, tiny_dino: Path) -> None:
    baseline = build("maskclip", tiny_clip, tiny_dino)
    images = [some_image(70, 100, 1), some_image(100, 70, 2), some_image(64, 64, 3)]
    allowed = [None, {0}, {2}]
    together = predict(baseline, images, [1, 2, 3], allowed)
    for image, some, result in zip(images, allowed, together, strict=True):
        (alone,) = predict(baseline, [image], [7], [some])
        assert result.labels.shape == image.shape[:2]
        assert torch.equal(alone.labels, result.labels)
        assert some is None or set(result.labels.unique().tolist()) <= {0} | {c + 1 for c in some}


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_agrees_with_full(method: str, tiny_clip: Path, tiny_dino: Path) -> None:
    image = some_image()
    full = predict(build(method, tiny_clip, tiny_dino), [image], [0])[0]
    proxy = proxy_of(tiny_dino, torch.bfloat16)
    half = Baseline(tower_of(tiny_clip, torch.bfloat16), QUERIES, method, SETTINGS, proxy)
    result = predict(half, [image], [0])[0]
    assert result.scores.dtype == torch.float32
    assert (result.labels == full.labels).float().mean() > 0.9


def test_patches_that_all_look_alike_attend_to_themselves() -> None:
    assert torch.equal(proxy_attention(torch.ones(5, 3)), torch.eye(5))


def test_a_plain_image_gets_finite_scores(tiny_clip: Path, tmp_path: Path) -> None:
    folder = write_tiny_dino(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"pos_embed": torch.zeros_like(weights["pos_embed"])}, folder / "model.safetensors")
    image = np.full((64, 64, 3), 90, np.uint8)
    (result,) = predict(build("proxyclip", tiny_clip, folder), [image], [0])
    assert result.scores.isfinite().all()


def test_proxyclip_needs_a_proxy(tiny_clip: Path) -> None:
    with pytest.raises(ValueError, match="proxyclip needs a proxy model"):
        Baseline(tower_of(tiny_clip), QUERIES, "proxyclip", SETTINGS)


def test_embeddings_of_another_width_are_refused(tiny_clip: Path) -> None:
    with pytest.raises(ValueError, match="8 dimensions, the image tower has 16"):
        Baseline(tower_of(tiny_clip), some_queries(8), "clip", SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"shorter_side_px": 0},
        {"shorter_side_px": 8193},
        {"logit_scale": -1.0},
        {"logit_scale": float("nan")},
        {"background_threshold": -0.1},
        {"background_threshold": 1.1},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be between"):
        BaselineSettings(**change)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        proxy_of(folder)
    message = str(caught.value)
    assert message.startswith(f"proxy model 'local-dir:{folder}' cannot be loaded: ")
    assert "\n" not in message
    return message


def test_pickled_proxy_weights_are_never_read(tmp_path: Path) -> None:
    folder = write_tiny_dino(tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "there is no file model.safetensors" in refusal(folder)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_dino(tmp_path)
    (folder / "config.json").unlink()
    assert "there is no file config.json" in refusal(folder)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"architecture": "nonsense"}', '{"architecture": "resnet18"}'])
def test_unreadable_proxy_configurations_are_refused(config: str, tmp_path: Path) -> None:
    folder = write_tiny_dino(tmp_path)
    (folder / "config.json").write_text(config)
    assert "cannot be loaded" in refusal(folder)


@pytest.mark.parametrize("changes", [{"embed_dim": 32}, {"num_heads": 7}, {"depth": 3}])
def test_proxy_weights_of_another_architecture_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write_tiny_dino(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot be loaded" in refusal(folder)


@pytest.mark.parametrize("changes", [{"global_pool": "avg"}, {"patch_size": (8, 16)}])
def test_other_kinds_of_vision_transformers_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    assert "not a plain vision transformer" in refusal(write_tiny_dino(tmp_path, **changes))


def test_damaged_proxy_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_dino(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x80\x02not a safetensors file")
    assert "cannot be loaded" in refusal(folder)


@pytest.mark.parametrize("name", ["no_such_model", "some/repository", "vit_base_patch8_224.no_such_tag"])
def test_unknown_proxy_names_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"proxy model '{name}' cannot be loaded"):
        load_proxy(name, CPU, torch.float32)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_tiny_r_s16_p8_224"])
def test_other_models_of_timm_are_refused_before_their_weights_are_fetched(name: str) -> None:
    with pytest.raises(ModelError, match="not a plain vision transformer"):
        load_proxy(name, CPU, torch.float32)


def test_what_is_no_vision_transformer_is_refused() -> None:
    with pytest.raises(ValueError, match="not a plain vision transformer"):
        check_plain(torch.nn.Linear(1, 1))


def test_a_name_without_weights_in_the_hub_is_refused() -> None:
    model = torch.nn.Identity()
    model.pretrained_cfg = {"hf_hub_id": None}
    with pytest.raises(ValueError, match="the model hub has no weights under this name"):
        hub_repository(model)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of a model hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_timm_name_is_read_from_the_hubs_cache(offline_hub: Path) -> None:
    saved = timm.create_model("test_vit.r160_in1k", pretrained=False)
    content = offline_hub / "content"
    save_for_hf(saved, content, safe_serialization=True)
    put_in_hub_cache(offline_hub, "timm/test_vit.r160_in1k", content)
    assert (offline_hub / "hub/models--timm--test_vit.r160_in1k/snapshots" / COMMIT).is_dir()
    proxy = load_proxy("test_vit.r160_in1k", CPU, torch.float32)
    assert torch.equal(proxy.model.pos_embed, saved.pos_embed)
    assert (proxy.mean, proxy.patch_size_px) == ((0.5, 0.5, 0.5), 16)


def test_a_hub_without_safetensors_is_refused(offline_hub: Path) -> None:
    saved = timm.create_model("test_vit.r160_in1k", pretrained=False)
    content = offline_hub / "content"
    save_for_hf(saved, content, safe_serialization=False)
    put_in_hub_cache(offline_hub, "timm/test_vit.r160_in1k", content)
    with pytest.raises(ModelError, match=r"proxy model 'test_vit\.r160_in1k' cannot be loaded"):
        load_proxy("test_vit.r160_in1k", CPU, torch.float32)
