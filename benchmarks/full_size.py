"""Models for measuring speed: the published architectures with random weights, so that nothing is downloaded."""

from dataclasses import replace
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from cliper.affinity import TimmAffinity
from cliper.diffusion import DiffusionModel, stable_diffusion_scheduler
from cliper.loading import autoencoder_dtype, embed_empty_prompt, load_diffusion, load_vision_tower
from cliper.models import DEMO, find_clip, find_diffusion
from cliper.settings import EncoderDefaults, encoder_defaults
from cliper.timm_models import TimmModel, build_timm, pixel_statistics
from cliper.vision import VisionTower

HOST = torch.device("cpu")


def build_tower(clip: str, device: torch.device, dtype: torch.dtype) -> tuple[VisionTower, EncoderDefaults]:
    """The image tower of an open_clip architecture such as ViT-L-14, or of ``demo``, and the settings that suit it."""
    if clip == DEMO:
        spec = find_clip(DEMO)
        tower = load_vision_tower(spec, HOST, torch.float32)
        return replace(tower, model=moved(tower.model, device, dtype)), spec.defaults
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(clip)).visual
    tower = VisionTower(randomised(model, device, dtype), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return tower, encoder_defaults(tower.patch_size_px, len(tower.blocks))


def build_diffusion(clip: str, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    """The diffusion model that goes with a CLIP model: Stable Diffusion 2.1-base, or that of ``demo``."""
    if clip == DEMO:
        spec = find_diffusion(DEMO)
        model = load_diffusion(spec, embed_empty_prompt(spec), HOST, torch.float32)
        vae = moved(model.vae, device, autoencoder_dtype(dtype, device))
        return replace(model, vae=vae, unet=moved(model.unet, device, dtype))
    return build_stable_diffusion(SD_2_1, device, dtype)


SD_1_5: dict[str, Any] = {"attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False}
SD_2_1: dict[str, Any] = {
    "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True,
}  # fmt: skip
SD_XL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The UNets of Stable Diffusion's published configurations, where they differ from diffusers' defaults."""


def build_stable_diffusion(unet_config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    """Stable Diffusion with random weights; of the autoencoder only the encoder."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        )
        vae.decoder = vae.post_quant_conv = None
        sizes = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}
        unet = UNet2DConditionModel(**sizes | unet_config)
    prompt = torch.zeros(1, 77, unet_config["cross_attention_dim"])
    vae, unet = randomised(vae, device, autoencoder_dtype(dtype, device)), randomised(unet, device, dtype)
    return DiffusionModel(vae, unet, stable_diffusion_scheduler(), empty_prompt=prompt)


def build_timm_affinity(name: str, device: torch.device, dtype: torch.dtype) -> TimmAffinity:
    """A model of timm with random weights."""
    with torch.device("meta"):
        model: Any = build_timm(name)[0]
    heads = int(model.blocks[-1].attn.num_heads)
    return TimmAffinity(TimmModel(randomised(model, device, dtype), *pixel_statistics(model)), heads)


def moved(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A model with weights, on another device or in another number format."""
    return nn.Module.to(model, device, dtype)


@torch.no_grad()
def randomised(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Give a model without memory weights that keep activations of the order of 1."""
    model = nn.Module.to(model.to_empty(device=device), dtype).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model
