"""Train the demo's models from scratch, on pictures drawn for it. The same command goes on after a kill."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from matplotlib.figure import Figure
from rich.console import Console

from demo.training import clip, diffusion


@dataclass(frozen=True)
class TrainOptions:
    """How long to train, and where to."""

    folder: Path = Path("demo-training")
    """Drawn pictures, checkpoints and loss curves."""
    target: Path = Path("demo-training/models")
    """Model folders: clip/ for open_clip, diffusion/ for diffusers; and the loss curves as a picture."""
    clip_steps: int = clip.SCHEDULE.steps
    """Optimiser steps of CLIP."""
    autoencoder_steps: int = diffusion.AUTOENCODER_SCHEDULE.steps
    """Optimiser steps of the autoencoder."""
    unet_steps: int = diffusion.UNET_SCHEDULE.steps
    """Optimiser steps of the UNet."""
    clip_pictures: int = clip.PICTURES
    """Pictures drawn for CLIP."""
    diffusion_pictures: int = diffusion.PICTURES
    """Pictures drawn for the autoencoder and the UNet."""
    fused: bool = True
    """Compile the towers: about 1.6 times as fast on two cores; needs a C++ compiler."""


def main(options: TrainOptions) -> None:
    """Train CLIP, then the autoencoder, then the UNet; each goes on from its last checkpoint."""
    console = Console()
    schedule = replace(clip.SCHEDULE, steps=options.clip_steps)
    clip.train_clip(options.folder, options.target / "clip", schedule, options.clip_pictures, console, options.fused)
    autoencoder = replace(diffusion.AUTOENCODER_SCHEDULE, steps=options.autoencoder_steps)
    unet = replace(diffusion.UNET_SCHEDULE, steps=options.unet_steps)
    diffusion.train_diffusion(
        options.folder, options.target / "diffusion", (autoencoder, unet), options.diffusion_pictures, console
    )
    draw_loss_curves(options.folder, options.target / "loss-curves.svg")


def draw_loss_curves(folder: Path, target: Path) -> None:
    """The losses of all three trainings side by side, as an SVG file."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, part in zip(figure.subplots(1, 3), ("clip", "autoencoder", "unet"), strict=True):
        with (folder / part / "loss.csv").open(newline="") as file:
            steps, losses = zip(*((int(step), float(loss)) for step, loss in csv.reader(file)), strict=True)
        axes.plot(steps, losses, marker=".")
        axes.set(title=part, xlabel="step", ylabel="mean loss since the last point", ylim=(0, None))
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(tyro.cli(TrainOptions, description=__doc__))
