"""The vision model beside CLIP that ProxyCLIP takes its attention from (Lan et al. 2024, arXiv 2408.04883): DINO."""

from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from cliper.baseline_settings import DEFAULT_PROXY
from cliper.models import explaining
from cliper.timm_models import (
    TIMM_WEIGHTS,
    TimmModel,
    build_timm,
    download_weights,
    hub_repository,
    pixel_statistics,
    square_patch_px,
    with_weights,
)
from cliper.towers import Block
from cliper.vision import merge_heads, split_heads

BETA = 1.2
"""Similarities below this many times their mean are no neighbours (the paper's value)."""
GAMMA = 3.0
"""Factor on the similarities before the softmax, likewise."""


class ProxyModel(TimmModel):
    """A vision transformer whose patch features say which patches belong together."""

    def features(self, pixels: Float[Tensor, "1 3 input_h input_w"]) -> Float[Tensor, "grid_h grid_w width"]:
        """The last layer's normalised patch tokens, in float32, on the model's own patch grid.

        Pixels are normalised; their sides are multiples of the patch size.
        """
        model = cast(VisionTransformer, self.model)
        tokens = model.forward_features(pixels.to(self.weight.device, self.weight.dtype))
        grid_hw = (pixels.shape[2] // self.patch_size_px, pixels.shape[3] // self.patch_size_px)
        return tokens[0, model.num_prefix_tokens :].float().unflatten(0, grid_hw)


def load_proxy(name: str, device: torch.device, dtype: torch.dtype) -> ProxyModel:
    """Load a vision transformer through timm.

    Args:
        name: a timm model with a pretraining tag, such as ``vit_base_patch8_224.dino``, whose weights come from the
            model hub; or ``local-dir:FOLDER`` with ``config.json`` and ``model.safetensors`` as timm writes them.
        dtype: of weights and activations.

    Raises:
        ModelError: no such model, not reachable, or not a plain vision transformer.
    """
    with explaining(f"proxy model {name!r} cannot be loaded"):
        model, folder = build_proxy(name)
        file = download_weights(hub_repository(model)) if folder is None else folder / TIMM_WEIGHTS
        return ProxyModel(with_weights(model, file, device, dtype), *pixel_statistics(model))


def proxy_patch_size_px(name: str) -> int:
    """The patch size of a model for `load_proxy`, without its weights.

    Raises:
        ModelError: no such model, or not a plain vision transformer.
    """
    with explaining(f"proxy model {name!r} cannot be loaded"), torch.device("meta"):
        return square_patch_px(build_proxy(name)[0])


def build_proxy(name: str) -> tuple[VisionTransformer, Path | None]:
    """As `build_timm`, for plain vision transformers."""
    model, folder = build_timm(name)
    return check_plain(model), folder


def check_plain(model: nn.Module) -> VisionTransformer:
    """Refuse models whose patch tokens do not come normalised from square patches.

    Raises:
        ValueError: not a plain vision transformer of timm.
    """
    if (
        isinstance(model, VisionTransformer)
        and isinstance(model.patch_embed, PatchEmbed)
        and model.patch_embed.patch_size[0] == model.patch_embed.patch_size[1]
        and not isinstance(model.norm, nn.Identity)
    ):
        return model
    raise ValueError(f"it is not a plain vision transformer of timm (such as {DEFAULT_PROXY})")


def proxy_attention(features: Float[Tensor, "patches width"]) -> Float[Tensor, "patches patches"]:
    """ProxyCLIP's attention: softmax over each patch's similarities that exceed the image's mean.

    S is the cosine similarity of all pairs; an entry counts where ``GAMMA * (S - BETA * mean(S))`` is at least 0.
    Where all patches look alike (mean above 1 / BETA), no entry of a row may be left, and the softmax would be
    undefined: a patch always attends to itself, which changes no row that has an entry, since S is largest there.
    """
    unit = F.normalize(features, dim=-1)
    similarity = unit @ unit.T
    logits = GAMMA * (similarity - BETA * similarity.mean())
    return logits.masked_fill((logits < 0).fill_diagonal_(False), -torch.inf).softmax(dim=-1)


def mix_by_proxy(
    last: Block,
    x: Float[Tensor, "1 tokens width"],
    prefix_tokens: int,
    clip_grid_hw: tuple[int, int],
    features: Float[Tensor, "grid_h grid_w proxy_width"],
) -> Float[Tensor, "1 proxy_patches width"]:
    """CLIP's values mixed by ProxyCLIP's attention, and projected: neither residual nor MLP follows.

    Args:
        last: CLIP's last block.
        x: the normalised input of its attention, prefix tokens first.
        prefix_tokens: class and register tokens, which do not take part.
        clip_grid_hw: CLIP's patch grid, from which the values are resized bilinearly to the proxy's grid.
        features: the proxy's patch features on its grid.
    """
    value = split_heads(last.attention.value(x), last.heads)[0, :, prefix_tokens:]  # heads, patches, head width
    on_clip_grid = value.transpose(1, 2).unflatten(-1, clip_grid_hw)
    resized = F.interpolate(on_clip_grid, features.shape[:2], mode="bilinear", align_corners=False)
    attention = proxy_attention(features.flatten(0, 1)).to(value.dtype)
    return last.project(merge_heads(attention @ resized.flatten(2).transpose(1, 2)[None]))
