"""Train the demo's models from scratch, on pictures drawn for it. The same command goes on after a kill."""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.console import Console

from demo import train_clip, train_diffusion


@dataclass(frozen=True)
class TrainOptions:
    """How long to train, and where to."""

    folder: Path = Path("demo-training")
    """Drawn pictures, checkpoints and loss curves."""
    target: Path = Path("demo-training/models")
    """Model folders: clip/ for open_clip, diffusion/ for diffusers."""
    clip_steps: int = train_clip.SCHEDULE.steps
    """Optimiser steps of CLIP."""
    autoencoder_steps: int = train_diffusion.AUTOENCODER_SCHEDULE.steps
    """Optimiser steps of the autoencoder."""
    unet_steps: int = train_diffusion.UNET_SCHEDULE.steps
    """Optimiser steps of the UNet."""
    clip_pictures: int = train_clip.PICTURES
    """Pictures drawn for CLIP."""
    diffusion_pictures: int = train_diffusion.PICTURES
    """Pictures drawn for the autoencoder and the UNet."""


def main(options: TrainOptions) -> None:
    """Train CLIP, then the autoencoder, then the UNet; each goes on from its last checkpoint."""
    console = Console()
    clip = replace(train_clip.SCHEDULE, steps=options.clip_steps)
    train_clip.train_clip(options.folder, options.target / "clip", clip, options.clip_pictures, console)
    autoencoder = replace(train_diffusion.AUTOENCODER_SCHEDULE, steps=options.autoencoder_steps)
    unet = replace(train_diffusion.UNET_SCHEDULE, steps=options.unet_steps)
    train_diffusion.train_diffusion(
        options.folder, options.target / "diffusion", (autoencoder, unet), options.diffusion_pictures, console
    )


if __name__ == "__main__":
    main(tyro.cli(TrainOptions, description=__doc__))
