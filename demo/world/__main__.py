"""Draw images with exact masks into a folder that ``jobs/evaluate.py --dataset folder`` reads."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import tyro
from PIL import Image

from demo.world.names import NAMES
from demo.world.scene import draw

JPEG_QUALITY = 92


def main(output: Path, seed: int = 0, images: int = 240, height_px: int = 240, width_px: int = 320) -> None:
    """Draw the images on all cores. Files of the same name are replaced.

    Args:
        output: Folder for images/NNNNNN.jpg, masks/NNNNNN.png (0 no class, c the c-th class) and classes.txt. N is the
            seed.
        seed: Seed of the first image. Training images have seeds from 1,000,000 on.
        images: Number of images.
        height_px: Height of every image.
        width_px: Width of every image.
    """
    for name in ("images", "masks"):
        (output / name).mkdir(parents=True, exist_ok=True)
    (output / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    write = partial(write_image, output, height_px, width_px)
    with ProcessPoolExecutor() as artists:
        list(artists.map(write, range(seed, seed + images), chunksize=16))


def write_image(output: Path, height_px: int, width_px: int, seed: int) -> None:
    """Write the image of a seed and its mask."""
    drawn = draw(seed, height_px, width_px)
    Image.fromarray(drawn.image).save(output / f"images/{seed:06}.jpg", quality=JPEG_QUALITY)
    Image.fromarray(drawn.labels).save(output / f"masks/{seed:06}.png")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
