"""Train the demo models from scratch on drawn images. After a kill, the same command resumes the training."""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from matplotlib.figure import Figure
from rich.console import Console

from demo.training import clip, diffusion
from demo.training.checkpoint import CHECKPOINT, read_losses


@dataclass(frozen=True)
class TrainOptions:
    """Length of the training, and its folders."""

    folder: Path = Path("demo-training")
    """Folder for drawn images and checkpoints."""
    target: Path = Path("demo-training/models")
    """Folder for the models, clip/ for open_clip and diffusion/ for diffusers, and for the plot of the losses."""
    clip_steps: int = clip.SCHEDULE.steps
    """Optimiser steps of CLIP."""
    autoencoder_steps: int = diffusion.AUTOENCODER_SCHEDULE.steps
    """Optimiser steps of the autoencoder."""
    unet_steps: int = diffusion.UNET_SCHEDULE.steps
    """Optimiser steps of the UNet."""
    clip_images: int = clip.IMAGES
    """Number of images drawn for CLIP."""
    diffusion_images: int = diffusion.IMAGES
    """Number of images drawn for the autoencoder and the UNet."""
    fused: bool = True
    """Compile the towers. This takes a minute, needs a C++ compiler, and is about 1.6 times as fast on two cores."""


def main(options: TrainOptions) -> None:
    """Train CLIP, then the autoencoder, then the UNet. Each resumes from its last checkpoint."""
    console = Console()
    schedule = replace(clip.SCHEDULE, steps=options.clip_steps)
    clip.train_clip(options.folder, options.target / "clip", schedule, options.clip_images, console, options.fused)
    autoencoder = replace(diffusion.AUTOENCODER_SCHEDULE, steps=options.autoencoder_steps)
    unet = replace(diffusion.UNET_SCHEDULE, steps=options.unet_steps)
    diffusion.train_diffusion(
        options.folder, options.target / "diffusion", (autoencoder, unet), options.diffusion_images, console
    )
    draw_loss_curves(options.folder, options.target / "loss-curves.svg")


def draw_loss_curves(folder: Path, target: Path) -> None:
    """Plot the losses of the three trainings side by side into an SVG file."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, part in zip(figure.subplots(1, 3), ("clip", "autoencoder", "unet"), strict=True):
        axes.plot(*zip(*read_losses(folder / part / CHECKPOINT), strict=True), marker=".")
        axes.set(title=part, xlabel="step", ylabel="mean loss since the last point", ylim=(0, None))
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(tyro.cli(TrainOptions, description=__doc__))
