"""Small towers of timm's families as open_clip wraps them, with random weights."""

from typing import Any

import timm
import torch
from open_clip.timm_model import TimmModel

DIMENSIONS = 16
"""Of the text space, where a tower projects to it."""
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 64}
SMALL_14 = SMALL | {"img_size": 56}
REGISTERS = {"class_token": True, "reg_tokens": 2, "no_embed_class": True, "init_values": 0.3, "qk_norm": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "SigLIP": ("vit_base_patch16_siglip_224", SMALL),
    "SigLIP 2": ("vit_so400m_patch16_siglip_256", SMALL | {"mlp_ratio": 3.7}),
    "SigLIP with registers": ("vit_base_patch16_siglip_224", SMALL | REGISTERS),
    "EVA01": ("eva_giant_patch14_224", SMALL_14 | {"mlp_ratio": 4}),
    "EVA02": ("eva02_base_patch16_clip_224", SMALL),
    "EVA02-E": ("eva02_enormous_patch14_clip_224", SMALL_14 | {"mlp_ratio": 4}),
    "PE": ("vit_pe_core_base_patch16_224", SMALL),
    "PE bigG": ("vit_pe_core_gigantic_patch14_448", SMALL_14 | {"mlp_ratio": 4}),
    "MobileCLIP2-L": ("vit_large_patch14_clip_224", SMALL_14),
}
"""timm's name, and what makes it small."""


def small_tower(family: str, **changes: Any) -> TimmModel:
    """A tower of a family. SigLIP's pool has its width as the text space, the others a projection."""
    name, options = FAMILIES[family]
    pool, projection = "map" if family.startswith(("SigLIP", "PE")) else "token", not family.startswith("SigLIP")
    torch.manual_seed(0)
    model = TimmModel("test_vit", 1, pool="token", proj="none")
    classes = DIMENSIONS if projection else 0
    model.trunk = timm.create_model(name, num_classes=classes, **{"global_pool": pool} | options | changes)
    return randomised(model)


def randomised(model: TimmModel) -> TimmModel:
    """With weights of which every one counts: many are zero or one in timm's own initialisation."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if "embed" in name or "token" in name else 1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)
