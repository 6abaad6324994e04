"""Small models with random weights, in the folders that the job reads: for tests of plumbing and arithmetic."""

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from timm.models import save_for_hf

from cliper.diffusion import stable_diffusion_scheduler


def write_tiny_clip(
    folder: Path, patch: int = 16, layers: int = 4, trained_px: int = 112, quick_gelu: bool = True, seed: int = 0
) -> Path:
    """An open_clip model folder: image tower of width 32 with two heads, text tower of width 8."""
    model_cfg = {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": trained_px,
            "layers": layers,
            "width": 32,
            "head_width": 16,
            "patch_size": patch,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**model_cfg)
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            if parameter.ndim > 1:  # the default initialisation is nearly constant: attention would be uniform
                parameter.normal_(std=0.4 if "positional" in name else 1.5 * parameter.shape[-1] ** -0.5)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def write_tiny_diffusion(folder: Path, seed: int = 0, linear: bool = True, **changes: Any) -> Path:
    """A diffusers folder for images of 128 x 128: latents of 16 x 16, two heads of 256 positions a layer.

    Args:
        linear: as Stable Diffusion 2; else as 1.
        changes: of the UNet's configuration.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.18215,
        sample_size=128,
    )
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "use_linear_projection": linear,
    }
    unet = UNet2DConditionModel(**config | changes)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                parameter.normal_(std=1.0)
    scheduler = stable_diffusion_scheduler()
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def write_tiny_timm(folder: Path, name: str, **changes: Any) -> Path:
    """A folder as timm writes it: two blocks of width 32 with two heads, for patches of 8 pixels."""
    torch.manual_seed(3)
    arguments = {"patch_size": 8, "img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2} | changes
    model = timm.create_model(name, num_classes=0, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    save_for_hf(model, folder, safe_serialization=True)
    return folder
