"""Self-attention of a latent diffusion model, recorded in one noise-prediction pass."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from cliper.settings import MethodSettings

SCHEDULE_STEPS = 50
SCHEDULE_INDEX = 45
"""Noise is added as at entry 45 of the 50-step PNDM schedule, which is timestep 101 of 1,000."""

LayerQueriesAndKeys = tuple[
    Float[Tensor, "batch heads positions head_width"], Float[Tensor, "batch heads positions head_width"]
]


class AllRecorded(Exception):  # noqa: N818 (ends a pass, is no error)
    """Ends the UNet's pass: every attention that is needed has been recorded."""


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

    @property
    def latent_hw(self) -> tuple[int, int]:
        size = self.unet.config["sample_size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def side_px(self) -> int:
        """Side of the square input picture: the UNet's latent size times the autoencoder's reduction."""
        return int(self.latent_hw[0] * 2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def timestep(self) -> int:
        self.scheduler.set_timesteps(SCHEDULE_STEPS)
        return int(self.scheduler.timesteps[SCHEDULE_INDEX])

    def noise(self, seed: int) -> Float[Tensor, "channels latent_h latent_w"]:
        """Standard normal noise that depends on the seed alone, whatever the device and the batch."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.vae.config["latent_channels"], *self.latent_hw, generator=generator)

    def latents(self, pixels: Float[Tensor, "batch 3 side_px side_px"]) -> Float[Tensor, "batch channels h w"]:
        """The autoencoder's posterior mean times the scaling factor, in float32.

        Args:
            pixels: pictures in -1 to 1.
        """
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return posterior.mean.float() * self.vae.config["scaling_factor"]

    def queries_and_keys(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
    ) -> list[LayerQueriesAndKeys]:
        """Queries and keys of the two self-attentions, in the order in which their heads are chained.

        The latents are noised and sent through the UNet with the empty prompt and without guidance. The pass ends as
        soon as the last attention needed has been reached.

        Args:
            latents: as from `latents`.
            noise: standard normal, one per picture.
        """
        device, dtype = self.unet.device, self.unet.dtype
        timestep = torch.tensor(self.timestep)
        noisy = self.scheduler.add_noise(latents, noise.to(device), timestep[None])
        prompt = self.empty_prompt.to(device, dtype).expand(len(latents), -1, -1)

        recorded: dict[nn.Module, LayerQueriesAndKeys] = {}
        layers = attention_layers(self.unet)

        def record(attention: Attention, arguments: tuple[Tensor, ...]) -> None:
            hidden = arguments[0]
            heads = (attention.heads, -1)
            query, key = (
                proj(hidden).unflatten(-1, heads).transpose(1, 2) for proj in (attention.to_q, attention.to_k)
            )
            recorded[attention] = (query, key)
            if len(recorded) == len(layers):
                raise AllRecorded

        hooks = [layer.register_forward_pre_hook(record) for layer in layers]
        try:
            self.unet(noisy.to(dtype), timestep.to(device), encoder_hidden_states=prompt)
        except AllRecorded:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return [recorded[layer] for layer in layers]


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


def check_head(unet: UNet2DConditionModel, settings: MethodSettings) -> None:
    """Raises ValueError: ``head`` names a head that the UNet does not have, or it has no attention to use at all."""
    heads = sum(layer.heads for layer in attention_layers(unet))
    if settings.compensation == "head" and settings.head >= heads:
        raise ValueError(f"head must be below {heads} for this diffusion model, not {settings.head}")
