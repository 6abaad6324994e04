"""Every name of open_clip's list is open_clip's own model, or it is refused with the reason."""

import contextlib
import json
import re
from typing import Any

import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU
from torch import nn
from torch.nn import functional as F

from cliper.loading import compute_buffers
from cliper.models import ModelError, image_tower, known_clip
from cliper.vision import VisionTower, merge_heads, trace
from tests.support.towers import randomised

NAMES = [f"{architecture}:{tag}" for architecture, tag in list_pretrained()]
LARGEST_WIDTH = 768
LARGEST_SIDE_PX = 256
"""Towers that are wider or see larger images take seconds each."""
PHRASES = ["a photo of a dog.", "Ein Hund läuft, schnell!", "words " * 100, ""]


def accepted() -> dict[str, tuple[str, dict[str, Any]]]:
    """By name, the full name and the architecture's settings."""
    found = {}
    for name in NAMES:
        with contextlib.suppress(ModelError):
            found[name] = known_clip(name)[:2]
    return found


ACCEPTED = accepted()
ARCHITECTURES = {json.dumps(model_cfg, sort_keys=True): full for full, model_cfg in ACCEPTED.values()}
"""Each architecture once, with the name of one of its models."""


def image_tower_of(architecture: str) -> str:
    """What sets image towers apart."""
    model_cfg = json.loads(architecture)
    vision = model_cfg["vision_cfg"]
    return json.dumps([vision, model_cfg["embed_dim"], "timm_model_name" in vision or model_cfg["quick_gelu"]])


IMAGE_TOWERS = {image_tower_of(text): text for text in ARCHITECTURES}
"""Each image tower once, with one of the architectures that have it."""


FAMILIES: dict[str, tuple[int, str]] = {
    r"RN\d": (16, "has no plain vision transformer"),
    "convnext": (12, r"no plain transformer over patches \(convnext"),
    "ViTamin": (15, r"no plain transformer over patches \(vitamin"),
    "MobileCLIP2?-(S|B)": (9, r"no plain transformer over patches \((fastvit|vit_base_mci)"),
    "(xlm-)?roberta": (3, r"text tower of another library \(hf_model_name\)"),
    "nllb": (6, r"text tower of another library \(hf_model_name\)"),
    "coca": (4, r"leaves no dense features \(attentional_pool\)"),
    "ViT-.*-CLIPA": (7, r"leaves no dense features \(final_ln_after_pool\)"),
    "ViT-.*-worldwide": (5, r"tokenizer that others publish than its weights \(facebook/xlm-v-base\)"),
    r"ViT-.*-SigLIP(-|:)": (11, ""),
    "ViT-.*-SigLIP2": (15, ""),
    "EVA01": (2, ""),
    "EVA02": (5, ""),
    "PE-Core": (5, ""),
    "MobileCLIP2-L": (1, ""),
    r"ViT-(B-32|B-16|L-14|H-14|g-14|bigG-14)(-256|-plus-240|-336|-378)?(-quickgelu)?:": (80, ""),
}
"""By the beginning of a name: how many names there are, and why they are refused; empty if they are accepted. The table
in docs/beyond.md."""


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_accepted_or_refused_with_the_reason(family: str) -> None:
    count, reason = FAMILIES[family]
    names = [name for name in NAMES if re.match(family, name)]
    assert len(names) == count
    for name in names:
        if reason:
            with pytest.raises(ModelError, match=reason):
                known_clip(name)
        else:
            assert name in ACCEPTED


def test_every_name_has_one_family() -> None:
    assert [sum(bool(re.match(family, name)) for family in FAMILIES) for name in NAMES] == [1] * len(NAMES)


@pytest.mark.parametrize("name", ACCEPTED)
def test_weights_get_the_activation_that_they_were_trained_with(name: str) -> None:
    full, model_cfg = ACCEPTED[name]
    architecture, _, tag = name.partition(":")
    assert model_cfg["quick_gelu"] == bool(get_pretrained_cfg(architecture, tag).get("quick_gelu"))
    assert full == name.replace("-quickgelu:", ":")


def width_of(model_cfg: dict[str, Any]) -> int:
    """Of the image tower's tokens. timm's towers are wide unless the name says otherwise."""
    vision = model_cfg["vision_cfg"]
    if "timm_model_name" not in vision:
        return int(vision["width"])
    narrow = any(size in vision["timm_model_name"] for size in ("_base_", "_small_", "_tiny_"))
    return LARGEST_WIDTH if narrow and vision["image_size"] <= LARGEST_SIDE_PX else LARGEST_WIDTH + 1


EACH_ARCHITECTURE = pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(text, id=name, marks=[pytest.mark.long] * (width_of(json.loads(text)) > LARGEST_WIDTH))
        for text, name in ARCHITECTURES.items()
        if IMAGE_TOWERS[image_tower_of(text)] == text
    ],
)


@EACH_ARCHITECTURE
def test_the_tower_is_open_clips_own(architecture: str) -> None:
    """With random weights and three blocks: the other blocks only repeat."""
    model_cfg, name = json.loads(architecture), ARCHITECTURES[architecture]
    torch.manual_seed(0)
    native = shortened(model_cfg)
    tower = VisionTower(native, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    side = model_cfg["vision_cfg"]["image_size"]
    pixels = torch.randn(1, 3, side, side)
    seen = slice(side // tower.patch_size_px * tower.patch_size_px)  # SigLIP's 384 pixels are 27.4 patches of 14
    with torch.inference_mode():
        traced = trace(tower, pixels[:, :, seen, seen], "release", keep_attention=True)
        last = tower.blocks[-1]
        query, key, value = last.attention.qkv(last.before_attention(traced.features[-1]), traced.rotation)
        own = last.finish(traced.features[-1], merge_heads(F.scaled_dot_product_attention(query, key, value)))
        theirs = native(pixels)
        if isinstance(native, TimmModel) and native.trunk.attn_pool is not None:
            ours = native.head(native.trunk.forward_head(native.trunk.norm(own)))
        else:
            ours = tower.parts.project(own)[:, 0]
    assert ours.shape == (1, tower.dimensions) == (1, model_cfg["embed_dim"])
    assert torch.allclose(ours, theirs, atol=1e-5 * theirs.abs().max().item()), name


def shortened(model_cfg: dict[str, Any]) -> nn.Module:
    """The image tower with three blocks and random weights, by open_clip and timm."""
    vision = model_cfg["vision_cfg"]
    if "timm_model_name" not in vision:
        text = model_cfg["text_cfg"] | {"layers": 1, "vocab_size": 1}
        model = open_clip.CLIP(**(model_cfg | {"vision_cfg": vision | {"layers": 3}, "text_cfg": text})).eval()
        activations = [isinstance(block.mlp.gelu, QuickGELU) for block in model.visual.transformer.resblocks]
        assert activations == [model_cfg["quick_gelu"]] * 3
        return model.visual
    tower: Any = image_tower(model_cfg)
    tower.trunk.blocks = tower.trunk.blocks[:3]
    for module in tower.modules():
        for key, parameter in module.named_parameters(recurse=False):
            module.register_parameter(key, nn.Parameter(torch.ones_like(parameter, device="cpu")))
    compute_buffers(tower)
    return randomised(tower)


@pytest.mark.parametrize("architecture", [text for text in ARCHITECTURES if "hf_tokenizer_name" not in text])
def test_words_are_tokenized_as_open_clip_does(architecture: str) -> None:
    context, name = json.loads(architecture)["text_cfg"].get("context_length", 77), ARCHITECTURES[architecture]
    tokens = open_clip.get_tokenizer(name.partition(":")[0])(PHRASES)
    assert torch.equal(open_clip.SimpleTokenizer(context_length=context)(PHRASES), tokens)
