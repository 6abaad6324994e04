"""Drawn training images. They are kept in a folder, so that a resumed training does not draw them again."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.world.scene import draw

FIRST_TRAINING_SEED = 1_000_000
"""Training images have seeds from here on. Smaller seeds are for evaluation."""


def draw_one(seed_and_side: tuple[int, int]) -> tuple[np.ndarray, str]:
    seed, side_px = seed_and_side
    scene = draw(seed, side_px, side_px)
    return scene.image, scene.caption


class TrainingImages:
    """Square training images with captions.

    Args:
        count: number of images.
        side_px: width and height.
        folder: where they are kept.
    """

    def __init__(self, count: int, side_px: int, folder: Path) -> None:
        path = folder / f"images-{side_px}px-{count}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            seeds = [(FIRST_TRAINING_SEED + number, side_px) for number in range(count)]
            images = np.lib.format.open_memmap(f"{path}.part", "w+", np.uint8, (count, side_px, side_px, 3))
            captions = []
            with ProcessPoolExecutor(os.cpu_count()) as artists:
                for number, (image, caption) in enumerate(artists.map(draw_one, seeds, chunksize=64)):
                    images[number] = image
                    captions.append(caption)
            images.flush()
            path.with_suffix(".json").write_text(json.dumps(captions))
            os.replace(f"{path}.part", path)
        self.images = np.load(path, mmap_mode="r", allow_pickle=False)
        self.captions: list[str] = json.loads(path.with_suffix(".json").read_text())

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Images of a training step and their captions.

        Returns:
            float32 [size, 3, side, side] in -1 to 1, about half of them mirrored, and ``size`` captions.
        """
        rng = np.random.default_rng(step)
        chosen = rng.choice(len(self.images), size, replace=False)
        images = torch.from_numpy(np.stack([self.images[i][:, :: rng.choice([-1, 1])] for i in chosen]))
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1, [self.captions[i] for i in chosen]
