"""Training of the demo's CLIP from scratch on drawn images and their captions. Masks are never used."""

import json
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cliper.fusion import EarlyAttention, scale_rows
from cliper.vision import VisionTower, merge_heads, split_heads, trace
from demo.training.checkpoint import Schedule, train
from demo.training.images import TrainingImages
from demo.world.names import NAMES, PAINTED, PAINTS
from demo.world.scene import PLURAL
from demo.world.stuff import SKIES

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 96, "layers": 6, "width": 192, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIPER_DEFAULTS = {
    "shorter_side_px": 144,
    "select_layer": -1,
    "logit_scale": 20.0,
    "score_threshold": 0.9,
    "background_threshold": 0.0001,
}
"""Settings of the method for this model. The background threshold is low because every pixel has a name."""
CLIPER_OPEN = {
    "logit_scale": 17.0,
    "presence_midpoint": 0.83,
    "presence_slope": 8.33,
    "outline_threshold": 0.0001,
    "measured": "200 drawn images, with compensation: calibration error 0.005",
}
"""The same for preset open, chosen on 200 images from seed 10,000 on."""
BATCH = 64
CLIP_SCHEDULE = Schedule(steps=3000, learning_rate=1.5e-3)
CLIP_IMAGES = 48_000
PHRASES = (*NAMES, *(f"{colour} {name}" for name in sorted(PAINTED) for colour in PAINTS), *SKIES)
"""Phrases that captions contain: names, painted things with their colour, kinds of sky."""
TEMPLATES = ("{}", "a {}", "a photo of {}", "a photo of a {}", "there is {} in the scene")


@cache
def phrases_in(caption: str) -> list[bool]:
    """Whether a caption contains each of `PHRASES`, in the singular or the plural."""
    for name, plural in {**{name: f"{name}s" for name in NAMES}, **PLURAL}.items():
        caption = re.sub(rf"\b{plural}\b", name, caption)
    return [re.search(rf"\b{phrase}\b", caption) is not None for phrase in PHRASES]


class DemoClip(nn.Module):
    """A model of open_clip with its losses and their scales. ``fused`` compiles the towers."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.clip = open_clip.CLIP(**MODEL_CFG)
        self.tower = VisionTower(self.clip.visual, MEAN, STD)
        self.patch_scale = nn.Parameter(torch.tensor(10.0).log())
        self.phrase_scale = nn.Parameter(torch.tensor(10.0).log())
        self.phrase_bias = nn.Parameter(torch.tensor(-3.0))
        self.tokenize = open_clip.SimpleTokenizer(context_length=MODEL_CFG["text_cfg"]["context_length"])
        self.encode_image, self.encode_text = self.dense_features, self.clip.encode_text
        if fused:
            self.encode_image = torch.compile(self.encode_image, dynamic=False)
            self.encode_text = torch.compile(self.encode_text, dynamic=False)

    def dense_features(self, pixels: Tensor, early: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images.

        Returns:
            CLIP's own output [batch, dimensions], and two dense features [batch, patches, dimensions]: of block
            ``early`` (a scalar index) and of the last block. All are L2-normalised. Dense features are computed as in
            the method, but for speed their attention goes through one round of normalisation.
        """
        tower, visual = self.tower, self.clip.visual
        traced = trace(tower, pixels, "release", keep_attention=True)
        assert traced.attention_sum is not None
        last = tower.blocks[-1]
        pooled = tower.parts.project(visual.transformer.resblocks[-1](traced.features[-1])[:, 0])
        early_attention = EarlyAttention(traced.attention_sum)
        early_attention.next_round()
        attention = scale_rows(early_attention.symmetric())
        dense = []
        for feature in (torch.stack(traced.features)[early], traced.features[-1]):
            value = split_heads(last.attention.value(last.before_attention(feature)), last.heads)
            mixed = merge_heads(attention.to(value.dtype) @ value)
            dense.append(F.normalize(tower.parts.project(last.project(mixed))[:, 1:], dim=-1))
        return F.normalize(pooled, dim=-1), dense[0], dense[1]

    def loss(self, images: TrainingImages, step: int) -> Tensor:
        """The loss of a training step. It depends on the step's number alone."""
        pixels, captions = images.batch(step, BATCH)
        rng = np.random.default_rng(step)
        template = rng.choice(TEMPLATES)
        device = self.phrase_bias.device
        early = torch.tensor(rng.integers(MODEL_CFG["vision_cfg"]["layers"] - 1), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            encoded = self.encode_image(pixels.to(device), early)
            texts, phrases = (
                self.encode_text(self.tokenize(words).to(device), normalize=True).float()
                for words in (captions, [template.replace("{}", phrase) for phrase in PHRASES])
            )
        pooled, early_dense, last_dense = (feature.float() for feature in encoded)
        present = torch.tensor([phrases_in(caption) for caption in captions], device=device)
        scale = self.clip.logit_scale.exp()
        loss = contrast(pooled, texts, scale)
        loss = loss + contrast(F.normalize(last_dense.mean(dim=1), dim=-1), texts, scale)
        similarity = last_dense @ phrases.T
        loss = loss + self.named_patches(similarity, present) + self.found(similarity, present)
        return loss + 0.5 * self.named_patches(early_dense @ phrases.T, present)

    def named_patches(self, similarity: Tensor, present: Tensor) -> Tensor:
        """Every patch shows something that the caption names, and every name in the caption wins somewhere.

        Args:
            similarity: cosine [batch, patches, phrases].
            present: whether the caption contains each phrase [batch, phrases].
        """
        names = len(NAMES)
        logits = self.patch_scale.exp() * similarity[..., :names]
        wanted = present[:, None, :names]
        among_named = logits.masked_fill(~wanted, -1e4).logsumexp(dim=-1) - logits.logsumexp(dim=-1)
        best = logits.log_softmax(dim=-1).topk(3, dim=1).values.mean(dim=1)
        return -among_named.mean() - 0.5 * best[present[:, :names]].mean()

    def found(self, similarity: Tensor, present: Tensor) -> Tensor:
        """The patches that fit a phrase best decide whether the image shows it."""
        logits = self.phrase_scale.exp() * similarity.topk(4, dim=1).values.mean(dim=1) + self.phrase_bias
        return 4 * F.binary_cross_entropy_with_logits(logits, present.float())


def contrast(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The symmetric contrastive loss of CLIP."""
    logits = scale * images @ texts.T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train_clip(folder: Path, target: Path, schedule: Schedule, count: int, fused: bool) -> Tensor:
    """Train CLIP on ``count`` images and write it in half precision as an open_clip model folder to ``target``.

    Checkpoints are kept in ``folder``. Returns the loss curve.
    """
    torch.manual_seed(0)
    model = DemoClip(fused).to("cuda" if torch.cuda.is_available() else "cpu")
    images = TrainingImages(count, MODEL_CFG["vision_cfg"]["image_size"])
    curve = train(model, partial(model.loss, images), schedule, folder / "clip")
    target.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().cpu().contiguous() for name, tensor in model.clip.state_dict().items()}
    save_file(state, target / "open_clip_model.safetensors")
    config = {
        "model_cfg": MODEL_CFG,
        "preprocess_cfg": {"mean": MEAN, "std": STD},
        "cliper_defaults": CLIPER_DEFAULTS,
        "cliper_open": CLIPER_OPEN,
    }
    (target / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    return curve
