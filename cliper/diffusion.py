"""Self-attention of a latent diffusion model, taken from one noise-prediction pass."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention as SelfAttention
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cliper.affinity import Attention, second_pixels
from cliper.compensation import LayerQueriesAndKeys
from cliper.compiled import CompiledPart
from cliper.preprocess import InputSpec, Prepared
from cliper.settings import DIFFUSION_LAYERS, DIFFUSION_TIMESTEP, MethodSettings
from cliper.stages import stage
from cliper.transfer import upload

WITH_ATTENTION = "CrossAttnUpBlock2D"
KNOWN_BLOCKS = frozenset(
    ["DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", "UpBlock2D", WITH_ATTENTION]
)
SIZE_IDS = 6
"""Numbers that SDXL is told about an image: its size, the corner of the crop, and the size to make of it."""


class FirstAttentions(nn.Module):
    """Stands in for a UNet's up block and ends with the queries and keys of some of its self-attentions.

    Args:
        block: diffusers' up block with cross-attention; its parts are shared.
        layers: which self-attentions, from 0. The last of them is where the pass ends.
    """

    has_cross_attention = True

    def __init__(self, block: CrossAttnUpBlock2D, layers: Sequence[int]) -> None:
        super().__init__()
        depth = max(layers) + 1
        self.layers, self.resnets, self.attentions = tuple(layers), block.resnets[:depth], block.attentions[:depth]

    def forward(
        self,
        hidden_states: Float[Tensor, "batch wide height width"],
        temb: Float[Tensor, "batch time_width"],
        res_hidden_states_tuple: tuple[Tensor, ...],
        encoder_hidden_states: Float[Tensor, "batch text_tokens text_width"],
        **_: Any,
    ) -> Float[Tensor, "layers 2 batch heads positions head_width"]:
        """Called by the UNet in the block's place; queries come first, then keys."""
        hidden, found = hidden_states, {}
        for index, (resnet, transformer) in enumerate(zip(self.resnets, self.attentions, strict=True)):
            hidden = resnet(torch.cat([hidden, res_hidden_states_tuple[-1 - index]], dim=1), temb)
            if index in self.layers:
                found[index] = query_and_key(transformer, hidden)
            if index + 1 < len(self.resnets):
                hidden = transformer(hidden, encoder_hidden_states, return_dict=False)[0]
        return torch.stack([found[layer] for layer in self.layers])


def query_and_key(
    transformer: Transformer2DModel, hidden: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "2 batch heads positions head_width"]:
    """What the transformer's first self-attention would compare."""
    normalised = transformer.norm(hidden)
    if transformer.use_linear_projection:
        tokens = transformer.proj_in(normalised.flatten(2).transpose(1, 2))
    else:
        tokens = transformer.proj_in(normalised).flatten(2).transpose(1, 2)
    block: Any = transformer.transformer_blocks[0]
    tokens = block.norm1(tokens)
    projected = torch.stack([block.attn1.to_q(tokens), block.attn1.to_k(tokens)])
    return projected.unflatten(-1, (block.attn1.heads, -1)).transpose(2, 3)


class LatentEncoder(nn.Module):
    """The autoencoder's posterior mean times the scaling factor."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: UInt8[Tensor, "batch 3 side_px side_px"]) -> Float[Tensor, "batch channels h w"]:
        """From RGB pixels, in float32."""
        posterior = self.vae.encode((pixels / 127.5 - 1).to(self.vae.dtype)).latent_dist
        return posterior.mean.float() * self.vae.config["scaling_factor"]


@dataclass(frozen=True)
class DiffusionModel:
    """The parts of Stable Diffusion that the method uses.

    Attributes:
        vae: only its encoder is used.
        unet: with cross-attention; queries and keys are read from the last up block that has it.
        scheduler: gives the amount of noise; of any kind that has ``alphas_cumprod``.
        empty_prompt: the text encoder's output for the empty prompt.
        timestep: of training, which the amount of noise is taken from.
        layers: self-attentions of the block, from 0, in the order in which their heads are chained.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler | PNDMScheduler
    empty_prompt: Float[Tensor, "1 text_tokens text_width"]
    timestep: int = DIFFUSION_TIMESTEP
    layers: tuple[int, ...] = DIFFUSION_LAYERS
    is_compiled = True

    @property
    def heads(self) -> int:
        return count_heads(self.unet, self.layers)

    @cached_property
    def encoder(self) -> CompiledPart:
        return CompiledPart("autoencoder", LatentEncoder(self.vae))

    @cached_property
    def cut_unet(self) -> CompiledPart:
        """Shares the UNet's weights, ends with the last self-attention that is needed, returns queries and keys."""
        shared = {id(tensor): tensor for tensor in (*self.unet.parameters(), *self.unet.buffers())}
        cut = deepcopy(self.unet, shared)
        place = attention_block(self.unet.config)
        cut.up_blocks = cut.up_blocks[: place + 1]
        cut.up_blocks[-1] = FirstAttentions(cut.up_blocks[-1], self.layers)
        cut.conv_norm_out, cut.conv_out = None, nn.Identity()
        return CompiledPart("UNet", cut)

    def compile(self, problems: list[str], **options: Any) -> None:
        """Prepare both parts for a GPU: convolution weights with channels last, and `CompiledPart.compile`."""
        for part in (self.encoder, self.cut_unet):
            part.plain.to(memory_format=torch.channels_last)
            part.compile(problems, **options)

    @property
    def latent_hw(self) -> tuple[int, int]:
        return latent_hw(self.unet.config)

    @property
    def side_px(self) -> int:
        """See `input_side_px`."""
        return input_side_px(self.unet.config, self.vae.config)

    @cached_property
    def shares(self) -> tuple[float, float]:
        """Of the latents and of the noise in what the UNet sees."""
        kept = self.scheduler.alphas_cumprod[self.timestep]
        return float(kept**0.5), float((1 - kept) ** 0.5)

    @cached_property
    def conditions(self) -> tuple[Tensor, Tensor]:
        """Timestep and empty prompt, where the UNet is."""
        device = self.unet.device
        return torch.tensor(self.timestep, device=device), self.empty_prompt.to(device, self.unet.dtype)

    @cached_property
    def size_conditions(self) -> tuple[Tensor, Tensor] | None:
        """What SDXL is told beside the prompt: zeros for the empty prompt's pooled embedding, and the size of an image
        that is not cropped. None for other models.
        """
        width = pooled_width(self.unet.config)
        if width is None:
            return None
        side, device, dtype = float(self.side_px), self.unet.device, self.unet.dtype
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=device, dtype=dtype)
        return torch.zeros(1, width, device=device, dtype=dtype), sizes

    def inputs(self, clip: InputSpec, settings: MethodSettings) -> InputSpec:
        """See `cliper.affinity.Affinity.inputs`."""
        return replace(clip, diffusion_side_px=self.side_px)

    def memory_bytes(self, image: Prepared) -> int:
        """See `cliper.affinity.Affinity.memory_bytes`: every image has the same size here."""
        return 0

    def noise(self, seed: int) -> Float[Tensor, "channels latent_h latent_w"]:
        """Standard normal noise that depends on the seed alone, whatever the device and the batch."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.vae.config["latent_channels"], *self.latent_hw, generator=generator)

    def queries_and_keys(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
    ) -> list[LayerQueriesAndKeys]:
        """Queries and keys of the self-attentions, in the order in which their heads are chained.

        The latents are mixed with standard normal noise and sent through the UNet with the empty prompt and without
        guidance. The pass ends as soon as the last attention needed has been reached.
        """
        of_latents, of_noise = self.shares
        noisy = (of_latents * latents + of_noise * noise).to(self.unet.dtype)
        timestep, prompt = self.conditions
        prompt = prompt.expand(len(latents), -1, -1)
        more: dict[str, Any] = {}
        if self.size_conditions is not None:
            pooled, sizes = (tensor.expand(len(latents), -1) for tensor in self.size_conditions)
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        maps = self.cut_unet(noisy, timestep, encoder_hidden_states=prompt, return_dict=False, **more)[0]
        return [(of_layer[0], of_layer[1]) for of_layer in maps]

    def attention(self, images: Sequence[Prepared], noise: Sequence[Tensor] | None = None) -> Attention:
        """See `cliper.affinity.Affinity.attention`."""
        device = self.unet.device
        with stage("preprocess"):
            pixels = second_pixels(images, device)
            noises = noise or [self.noise(image.seed) for image in images]
            on_device = upload(torch.stack(list(noises)), device)
        with stage("vae"):
            latents = self.encoder(pixels)
        with stage("unet"):
            return Attention(self.queries_and_keys(latents, on_device), attention_hw(self.unet.config))


def latent_hw(unet_config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the UNet's latents."""
    size = unet_config["sample_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def input_side_px(unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
    """Side of the square input image: the UNet's latent size times the autoencoder's reduction."""
    return int(latent_hw(unet_config)[0] * 2 ** (len(vae_config["block_out_channels"]) - 1))


def stable_diffusion_scheduler() -> PNDMScheduler:
    """Stable Diffusion's noise schedule, for models that are built here rather than loaded."""
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


def attention_block(unet_config: Mapping[str, Any]) -> int:
    """The place of the last up block with attention. Stable Diffusion's last block has it, SDXL's does not.

    Raises:
        ValueError: there is none.
    """
    places = [place for place, kind in enumerate(unet_config["up_block_types"]) if kind == WITH_ATTENTION]
    if not places:
        raise ValueError(f"the UNet has no {WITH_ATTENTION}, whose self-attention could be used")
    return places[-1]


def attention_hw(unet_config: Mapping[str, Any]) -> tuple[int, int]:
    """The grid of that block's positions: every up block but the last one doubles the sides."""
    halvings = len(unet_config["up_block_types"]) - 1 - attention_block(unet_config)
    height, width = latent_hw(unet_config)
    return height >> halvings, width >> halvings


def pooled_width(unet_config: Mapping[str, Any]) -> int | None:
    """Width of the prompt's pooled embedding that SDXL takes beside the prompt; None for other models."""
    if unet_config.get("addition_embed_type") is None:
        return None
    return int(unet_config["projection_class_embeddings_input_dim"]) - SIZE_IDS * int(
        unet_config["addition_time_embed_dim"]
    )


def check_unet(unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> None:
    """Refuse UNets that need other inputs than a noisy image and a prompt, or are built in another way.

    Raises:
        ValueError: one of these.
    """
    kinds = {*unet_config["down_block_types"], *unet_config["up_block_types"], unet_config.get("mid_block_type")}
    if unknown := sorted(kind for kind in kinds - KNOWN_BLOCKS if kind is not None):
        raise ValueError(f"the UNet has blocks of another kind than Stable Diffusion 1, 2 and XL ({unknown[0]})")
    channels, latents = unet_config["in_channels"], vae_config.get("latent_channels", 4)
    if channels != latents:
        raise ValueError(
            f"the UNet reads {channels} channels and the autoencoder gives {latents}: models for inpainting, depth or "
            f"upscaling need more than an image"
        )
    if unet_config.get("addition_embed_type") not in {None, "text_time"}:
        raise ValueError(f"the UNet needs {unet_config['addition_embed_type']!r} beside the prompt, which is unknown")
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "dual_cross_attention"):
        if unet_config.get(name):
            raise ValueError(f"the UNet needs more than an image and a prompt ({name} is set)")
    if any(np.atleast_1d(unet_config.get("only_cross_attention", False))):
        raise ValueError("the UNet has no self-attention (only_cross_attention is set)")


def check_schedule(scheduler_config: Mapping[str, Any], timestep: int) -> None:
    """Raises ValueError: the noise schedule has no betas, or not so many steps."""
    if "beta_start" not in scheduler_config and not scheduler_config.get("trained_betas"):
        raise ValueError(f"its noise schedule ({scheduler_config.get('_class_name')}) has no betas")
    steps = scheduler_config.get("num_train_timesteps", 1000)
    if timestep >= steps:
        raise ValueError(f"diffusion_timestep must be below {steps} for this diffusion model, not {timestep}")


def attention_layers(unet: UNet2DConditionModel, layers: Sequence[int]) -> list[SelfAttention]:
    """Some self-attentions of the last up block with attention.

    Raises:
        ValueError: the UNet does not have so many.
    """
    transformers = unet.up_blocks[attention_block(unet.config)].attentions
    if max(layers) >= len(transformers):
        raise ValueError(
            f"diffusion_layers must be below {len(transformers)} for this diffusion model, not {max(layers)}"
        )
    return [transformers[layer].transformer_blocks[0].attn1 for layer in layers]


def count_heads(unet: UNet2DConditionModel, layers: Sequence[int]) -> int:
    """The number of heads of these self-attentions. Raises ValueError: the UNet does not have them."""
    return sum(int(layer.heads) for layer in attention_layers(unet, layers))
