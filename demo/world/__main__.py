"""Draw images with exact masks into a folder that ``jobs/evaluate.py --dataset folder`` reads."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from PIL import Image

from demo.world.names import NAMES
from demo.world.scene import draw

JPEG_QUALITY = 92


@dataclass(frozen=True)
class WorldOptions:
    """Which images to draw, and where they go."""

    output: Path
    """Folder for images/NNNNNN.jpg, masks/NNNNNN.png (0 no class, c the c-th class) and classes.txt. N is the seed."""
    seed: int = 0
    """Seed of the first image. Training images have seeds from 1,000,000 on."""
    images: int = 240
    """Number of images."""
    height_px: int = 240
    """Height of every image."""
    width_px: int = 320
    """Width of every image."""


def main(options: WorldOptions) -> None:
    """Draw the images on all cores. Files of the same name are replaced."""
    for name in ("images", "masks"):
        (options.output / name).mkdir(parents=True, exist_ok=True)
    (options.output / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    seeds = range(options.seed, options.seed + options.images)
    with ProcessPoolExecutor(os.cpu_count()) as artists:
        list(artists.map(partial(write_image, options), seeds, chunksize=16))


def write_image(options: WorldOptions, seed: int) -> None:
    """Write the image of a seed and its mask."""
    drawn = draw(seed, options.height_px, options.width_px)
    Image.fromarray(drawn.image).save(options.output / f"images/{seed:06}.jpg", quality=JPEG_QUALITY)
    Image.fromarray(drawn.labels).save(options.output / f"masks/{seed:06}.png")


if __name__ == "__main__":
    main(tyro.cli(WorldOptions, description=__doc__))
