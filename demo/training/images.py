"""Drawn training images. They are kept in a folder, so that a resumed training does not draw them again."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.world.scene import draw

FIRST_TRAINING_SEED = 1_000_000
"""Training images have seeds from here on. Smaller seeds are for evaluation."""


class TrainingImages:
    """Square training images with captions, kept in a folder."""

    def __init__(self, count: int, side_px: int, folder: Path) -> None:
        path = folder / f"images-{side_px}px-{count}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            seeds, side = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + count), repeat(side_px)
            images = np.lib.format.open_memmap(f"{path}.part", "w+", np.uint8, (count, side_px, side_px, 3))
            captions = []
            with ProcessPoolExecutor(os.cpu_count()) as artists:
                for number, scene in enumerate(artists.map(draw, seeds, side, side, chunksize=64)):
                    images[number] = scene.image
                    captions.append(scene.caption)
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
