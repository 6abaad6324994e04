"""Training of the demo's latent diffusion model from scratch on drawn images: autoencoder, then UNet, without text."""

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from cliper.diffusion import stable_diffusion_scheduler
from demo.training.checkpoint import Schedule, train
from demo.training.images import TrainingImages

SIDE_PX = 128
DIFFUSION_IMAGES = 8_000
AUTOENCODER_SCHEDULE = Schedule(steps=500, learning_rate=2e-3, save_every=100)
UNET_SCHEDULE = Schedule(steps=4400, learning_rate=1e-3)
AUTOENCODER_BATCH, UNET_BATCH = 12, 8
TEXT_TOKENS, TEXT_WIDTH = 77, 16
SIMILARITY_GAIN = 4.0
USED_LATENT_SIDE = 48
"""The method uses larger latents than the training. Outlines are finer, at twice the cost."""


def new_autoencoder() -> AutoencoderKL:
    """An autoencoder from images of 128 x 128 px to latents of 32 x 32 with 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIDE_PX,
    )


def new_unet() -> UNet2DConditionModel:
    """A UNet of three resolutions. The two attentions of its last up block see 32 x 32 positions with one head each.

    Queries and keys start equal and large, so that self-attention starts as similarity. The usual start is
    nearly uniform attention, and a short training does not leave it (docs/demo-model.md).
    """
    unet = UNet2DConditionModel(
        sample_size=SIDE_PX // 4,
        block_out_channels=(48, 96, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=1,  # despite its name, the number of heads in diffusers
        norm_num_groups=8,
        use_linear_projection=True,
    )
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith("attn1"):
                module.to_q.weight.mul_(SIMILARITY_GAIN)
                module.to_k.weight.copy_(module.to_q.weight)
    return unet


def autoencoder_loss(vae: AutoencoderKL, images: TrainingImages, step: int) -> Tensor:
    """Reconstruction error and a small penalty that draws the latents towards a normal distribution."""
    pixels = images.batch(step, AUTOENCODER_BATCH)[0].to(vae.device)
    generator = torch.Generator().manual_seed(step)
    with torch.autocast(vae.device.type, torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    error = (decoded.float() - pixels).abs().mean() + 2 * F.mse_loss(decoded.float(), pixels)
    return error + 1e-3 * posterior.kl().float().mean() / posterior.mean[0].numel()


def unet_loss(unet: UNet2DConditionModel, vae: AutoencoderKL, images: TrainingImages, step: int) -> Tensor:
    """Error in predicting the noise added to latents, with an empty prompt of zeros."""
    pixels = images.batch(step, UNET_BATCH)[0].to(unet.device)
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad(), torch.autocast(unet.device.type, torch.bfloat16):
        latents = vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator).to(unet.device)
    # Half of the timesteps lie around the one that the method uses (101).
    timesteps = torch.randint(1, 1000, (len(latents),), generator=generator)
    timesteps[::2] = torch.randint(20, 250, (len(timesteps[::2]),), generator=generator)
    prompt = torch.zeros(len(latents), TEXT_TOKENS, TEXT_WIDTH, device=unet.device)
    with torch.autocast(unet.device.type, torch.bfloat16):
        noisy = stable_diffusion_scheduler().add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps.to(unet.device), encoder_hidden_states=prompt).sample
    return F.mse_loss(predicted.float(), noise)


def train_diffusion(
    folder: Path, target: Path, vae_schedule: Schedule, unet_schedule: Schedule, count: int
) -> dict[str, Tensor]:
    """Train both parts on ``count`` images and write them in half precision as a diffusers model folder to ``target``.

    Checkpoints are kept in ``folder``.

    Returns:
        The loss curves of ``autoencoder`` and ``unet``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    images = TrainingImages(count, SIDE_PX)
    vae, unet = new_autoencoder().to(device), new_unet().to(device)
    vae_curve = train(vae, partial(autoencoder_loss, vae, images), vae_schedule, folder / "autoencoder")
    vae.requires_grad_(False)
    # Latents of the UNet have a standard deviation of one.
    latents = vae.encode(images.batch(0, min(64, count))[0].to(device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    unet_curve = train(unet, partial(unet_loss, unet, vae, images), unet_schedule, folder / "unet")
    unet.register_to_config(sample_size=USED_LATENT_SIDE)
    vae.half().save_pretrained(target / "vae", safe_serialization=True)
    unet.half().save_pretrained(target / "unet", safe_serialization=True)
    stable_diffusion_scheduler().save_pretrained(target / "scheduler")
    return {"autoencoder": vae_curve, "unet": unet_curve}
