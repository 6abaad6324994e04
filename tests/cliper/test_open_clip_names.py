"""Every name of open_clip's list is open_clip's own model, or it is refused with the reason."""

import contextlib
import json
from typing import Any

import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained
from open_clip.transformer import QuickGELU

from cliper.models import ModelError, known_clip
from cliper.vision import VisionTower, check_supported, trace

NAMES = [f"{architecture}:{tag}" for architecture, tag in list_pretrained()]
LARGEST_WIDTH = 768
"""Wider towers take seconds each."""
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


def test_most_plain_transformers_are_accepted() -> None:
    assert len(NAMES) - len(ACCEPTED) >= 100, "towers of other libraries, convolutional ones, unusual pooling"
    assert len(ACCEPTED) >= 75
    assert {"ViT-B-16:openai", "ViT-L-14:openai", "ViT-B-16:dfn2b", "ViT-H-14:laion2b_s32b_b79k"} <= ACCEPTED.keys()


@pytest.mark.parametrize("name", [name for name in NAMES if "worldwide" in name])
def test_models_with_another_tokenizer_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"tokenizer of another library \(hf_tokenizer_name\)"):
        known_clip(name)


@pytest.mark.parametrize("name", ACCEPTED)
def test_weights_get_the_activation_that_they_were_trained_with(name: str) -> None:
    full, model_cfg = ACCEPTED[name]
    architecture, _, tag = name.partition(":")
    assert model_cfg["quick_gelu"] == bool(get_pretrained_cfg(architecture, tag).get("quick_gelu"))
    assert full == name.replace("-quickgelu:", ":")


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(
            text, id=name, marks=[pytest.mark.long] * (json.loads(text)["vision_cfg"]["width"] > LARGEST_WIDTH)
        )
        for text, name in ARCHITECTURES.items()
    ],
)
def test_the_tower_is_open_clips_own(architecture: str) -> None:
    """With random weights and three blocks: the other blocks only repeat."""
    model_cfg, name = json.loads(architecture), ARCHITECTURES[architecture]
    vision = model_cfg["vision_cfg"] | {"layers": 3}
    torch.manual_seed(0)
    text = model_cfg["text_cfg"] | {"layers": 1}
    model = open_clip.CLIP(**(model_cfg | {"vision_cfg": vision, "text_cfg": text})).eval()
    native = check_supported(model.visual)
    assert all(
        isinstance(block.mlp.gelu, QuickGELU) == model_cfg["quick_gelu"] for block in native.transformer.resblocks
    )
    tower = VisionTower(native, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)  # type: ignore[arg-type]
    side = vision["image_size"]
    pixels = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        own = trace(tower, pixels, "release", keep_attention=True).features[-1]
        ours = native.ln_post(native.transformer.resblocks[-1](own))[:, 0] @ native.proj
        theirs = model.encode_image(pixels)
    assert torch.allclose(ours, theirs, atol=1e-5 * theirs.abs().max().item()), name
    tokens = open_clip.get_tokenizer(name.partition(":")[0])(PHRASES)
    assert torch.equal(open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))(PHRASES), tokens)
