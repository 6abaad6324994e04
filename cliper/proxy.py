"""The vision model beside CLIP that ProxyCLIP takes its attention from (Lan et al. 2024, arXiv 2408.04883): DINO."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Float
from safetensors.torch import load_file
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from cliper.baseline_settings import DEFAULT_PROXY
from cliper.models import LOCAL_PREFIX, channels, explaining
from cliper.towers import Block
from cliper.vision import channel_statistics, merge_heads, split_heads

PROXY_CONFIG = "config.json"
PROXY_WEIGHTS = "model.safetensors"
PROXY_OPTIONS: dict[str, Any] = {"pretrained": False, "dynamic_img_size": True, "num_classes": 0}
BETA = 1.2
"""Similarities below this many times their mean are no neighbours (the paper's value)."""
GAMMA = 3.0
"""Factor on the similarities before the softmax, likewise."""


@dataclass(frozen=True)
class ProxyModel:
    """A vision transformer whose patch features say which patches belong together.

    Attributes:
        model: timm's vision transformer, for inputs of any multiple of its patch size; its weights are only read.
        mean, std: per channel, of pixels in 0 to 1, that the model was trained with (ImageNet's for DINO).
    """

    model: VisionTransformer
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def patch_size_px(self) -> int:
        return int(self.model.patch_embed.patch_size[0])

    @cached_property
    def statistics(self) -> Float[Tensor, "2 3 1 1"]:
        """See `channel_statistics`."""
        return channel_statistics(self.mean, self.std, self.model.patch_embed.proj.weight.device)

    def features(self, pixels: Float[Tensor, "1 3 input_h input_w"]) -> Float[Tensor, "grid_h grid_w width"]:
        """The last layer's normalised patch tokens, in float32, on the model's own patch grid.

        Pixels are normalised; their sides are multiples of the patch size.
        """
        weight = self.model.patch_embed.proj.weight
        tokens = self.model.forward_features(pixels.to(weight.device, weight.dtype))
        grid_hw = (pixels.shape[2] // self.patch_size_px, pixels.shape[3] // self.patch_size_px)
        return tokens[0, self.model.num_prefix_tokens :].float().unflatten(0, grid_hw)


def load_proxy(name: str, device: torch.device, dtype: torch.dtype) -> ProxyModel:
    """Load a vision transformer through timm; weights are read from ``model.safetensors`` only, never unpickled.

    timm builds the model, and every tensor of it must then be in the file: timm's own loader falls back to pickled
    weights, and leaves tensors that a file lacks at random.

    Args:
        name: a timm model with a pretraining tag, such as ``vit_base_patch8_224.dino``, whose weights come from the
            model hub; or ``local-dir:FOLDER`` with ``config.json`` and ``model.safetensors`` as timm writes them.
        dtype: of weights and activations.

    Raises:
        ModelError: no such model, not reachable, or not a plain vision transformer.
    """
    with explaining(f"proxy model {name!r} cannot be loaded"):
        model, folder = build_proxy(name)
        config = cast(dict[str, Any], model.pretrained_cfg)
        file = folder / PROXY_WEIGHTS if folder is not None else download_weights(config)
        model.load_state_dict({key: part for key, part in load_file(file).items() if not key.startswith("head.")})
        mean, std = channels(config["mean"]), channels(config["std"])
    return ProxyModel(model.to(device, dtype).eval().requires_grad_(False), mean, std)


def proxy_patch_size_px(name: str) -> int:
    """The patch size of a model for `load_proxy`, without its weights.

    Raises:
        ModelError: no such model, or not a plain vision transformer.
    """
    with explaining(f"proxy model {name!r} cannot be loaded"), torch.device("meta"):
        return int(build_proxy(name)[0].patch_embed.patch_size[0])


def build_proxy(name: str) -> tuple[VisionTransformer, Path | None]:
    """The model with random weights, and its folder if it is a local one. Raises one of `cliper.models.UNUSABLE`."""
    if not name.startswith(LOCAL_PREFIX):
        return check_plain(timm.create_model(name, **PROXY_OPTIONS)), None
    folder = Path(name.removeprefix(LOCAL_PREFIX)).expanduser()
    for required in (PROXY_CONFIG, PROXY_WEIGHTS):
        if not (folder / required).is_file():
            raise ValueError(f"there is no file {required}: give a timm folder with safetensors")
    try:
        return check_plain(timm.create_model(f"{LOCAL_PREFIX}{folder}", **PROXY_OPTIONS)), folder
    except KeyError as error:
        raise ValueError(f"{PROXY_CONFIG} has no {error}") from error


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


def download_weights(config: dict[str, Any]) -> Path:
    """The weights file of a timm model with this ``pretrained_cfg``, downloaded on first use on this machine.

    Raises:
        ValueError: timm knows no weights of this name in the hub.
        OSError: the hub cannot be reached or has no safetensors file.
    """
    if not config["hf_hub_id"]:
        raise ValueError(f"the model hub has no weights under this name (there are some for {DEFAULT_PROXY})")
    return Path(hf_hub_download(config["hf_hub_id"], PROXY_WEIGHTS))


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
