"""Self-attention of a latent diffusion model, taken from one noise-prediction pass."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cliper.compiled import CompiledPart
from cliper.settings import MethodSettings

SCHEDULE_STEPS = 50
SCHEDULE_INDEX = 45
"""Noise is added as at entry 45 of the 50-step PNDM schedule, which is timestep 101 of 1,000."""

LayerQueriesAndKeys = tuple[
    Float[Tensor, "batch heads positions head_width"], Float[Tensor, "batch heads positions head_width"]
]


class FirstAttentions(nn.Module):
    """Stands in for a UNet's last up block and ends with the queries and keys of its first two self-attentions.

    Args:
        block: diffusers' up block with cross-attention; its parts are shared.
    """

    has_cross_attention = True

    def __init__(self, block: CrossAttnUpBlock2D) -> None:
        super().__init__()
        self.resnets, self.attentions = block.resnets[:2], block.attentions[:2]

    def forward(
        self,
        hidden_states: Float[Tensor, "batch wide height width"],
        temb: Float[Tensor, "batch time_width"],
        res_hidden_states_tuple: tuple[Tensor, ...],
        encoder_hidden_states: Float[Tensor, "batch text_tokens text_width"],
        **_: Any,
    ) -> Float[Tensor, "layers 2 batch heads positions head_width"]:
        """Called by the UNet in the block's place; queries come first, then keys."""
        hidden = self.resnets[0](torch.cat([hidden_states, res_hidden_states_tuple[-1]], dim=1), temb)
        first = query_and_key(self.attentions[0], hidden)
        hidden = self.attentions[0](hidden, encoder_hidden_states, return_dict=False)[0]
        hidden = self.resnets[1](torch.cat([hidden, res_hidden_states_tuple[-2]], dim=1), temb)
        return torch.stack([first, query_and_key(self.attentions[1], hidden)])


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
        unet: with cross-attention; queries and keys are read from the last up block.
        scheduler: gives the amount of noise.
        empty_prompt: the text encoder's output for the empty prompt.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: PNDMScheduler
    empty_prompt: Float[Tensor, "1 text_tokens text_width"]

    @cached_property
    def encoder(self) -> CompiledPart:
        return CompiledPart("autoencoder", LatentEncoder(self.vae))

    @cached_property
    def cut_unet(self) -> CompiledPart:
        """Shares the UNet's weights, ends with the last self-attention that is needed, returns queries and keys."""
        shared = {id(tensor): tensor for tensor in (*self.unet.parameters(), *self.unet.buffers())}
        cut = deepcopy(self.unet, shared)
        cut.up_blocks[-1] = FirstAttentions(cut.up_blocks[-1])
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
    def timestep(self) -> int:
        self.scheduler.set_timesteps(SCHEDULE_STEPS)
        return int(self.scheduler.timesteps[SCHEDULE_INDEX])

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

    def noise(self, seed: int) -> Float[Tensor, "channels latent_h latent_w"]:
        """Standard normal noise that depends on the seed alone, whatever the device and the batch."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.vae.config["latent_channels"], *self.latent_hw, generator=generator)

    def queries_and_keys(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
    ) -> list[LayerQueriesAndKeys]:
        """Queries and keys of the two self-attentions, in the order in which their heads are chained.

        The latents are mixed with standard normal noise and sent through the UNet with the empty prompt and without
        guidance. The pass ends as soon as the last attention needed has been reached.
        """
        of_latents, of_noise = self.shares
        noisy = (of_latents * latents + of_noise * noise).to(self.unet.dtype)
        timestep, prompt = self.conditions
        prompt = prompt.expand(len(latents), -1, -1)
        maps = self.cut_unet(noisy, timestep, encoder_hidden_states=prompt, return_dict=False)[0]
        return [(maps[layer, 0], maps[layer, 1]) for layer in (1, 0)]


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


def attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """The two self-attentions of the last up block that the method uses, in the order in which it chains them.

    Raises:
        ValueError: the UNet's last up block has no such attentions.
    """
    transformers = getattr(unet.up_blocks[-1], "attentions", [])
    if len(transformers) < 2:
        raise ValueError("the UNet's last up block has fewer than two attention layers; Stable Diffusion 2.1 has three")
    return [transformers[index].transformer_blocks[0].attn1 for index in (1, 0)]


def check_head(unet: UNet2DConditionModel, settings: MethodSettings) -> int:
    """The number of heads.

    Raises:
        ValueError: ``head`` names a head that the UNet does not have, or it has no attention to use at all.
    """
    heads = sum(layer.heads for layer in attention_layers(unet))
    if settings.compensation == "head" and settings.head >= heads:
        raise ValueError(f"head must be below {heads} for this diffusion model, not {settings.head}")
    return heads
