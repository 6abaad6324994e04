"""Train the demo models from scratch on drawn images. After a kill, the same command resumes the training."""

from pathlib import Path

import tyro
from matplotlib.figure import Figure

from demo.training.checkpoint import Schedule
from demo.training.clip import CLIP_IMAGES, CLIP_SCHEDULE, train_clip
from demo.training.diffusion import AUTOENCODER_SCHEDULE, DIFFUSION_IMAGES, UNET_SCHEDULE, train_diffusion


def main(
    folder: Path = Path("demo-training"),
    target: Path = Path("demo-training/models"),
    clip: Schedule = CLIP_SCHEDULE,
    autoencoder: Schedule = AUTOENCODER_SCHEDULE,
    unet: Schedule = UNET_SCHEDULE,
    clip_images: int = CLIP_IMAGES,
    diffusion_images: int = DIFFUSION_IMAGES,
    fused: bool = True,
) -> None:
    """Train CLIP, then the autoencoder, then the UNet. Each resumes from its last checkpoint.

    Args:
        folder: Folder for checkpoints.
        target: Folder for the models, clip/ for open_clip and diffusion/ for diffusers, and for the plot of the losses.
        clip_images: Number of images drawn for CLIP.
        diffusion_images: Number of images drawn for the autoencoder and the UNet.
        fused: Compile the towers. This takes a minute, needs a C++ compiler, and is about 1.6 times as fast on two
            cores.
    """
    curves = {"clip": train_clip(folder, target / "clip", clip, clip_images, fused)}
    curves |= train_diffusion(folder, target / "diffusion", autoencoder, unet, diffusion_images)
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, (part, curve) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        axes.plot(*curve.T, marker=".")
        axes.set(title=part, xlabel="step", ylabel="mean loss since the last point", ylim=(0, None))
    figure.savefig(target / "loss-curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
