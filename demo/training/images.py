"""Drawn training images."""

from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from demo.world.scene import draw

FIRST_TRAINING_SEED = 1_000_000
"""Training images have seeds from here on. Smaller seeds are for evaluation."""


class TrainingImages:
    """Square training images with captions, drawn on all cores and kept in memory."""

    def __init__(self, count: int, side_px: int) -> None:
        seeds, side = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + count), repeat(side_px)
        with ProcessPoolExecutor() as artists:
            self.scenes = list(artists.map(draw, seeds, side, side, chunksize=64))

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Images of a training step and their captions.

        Returns:
            float32 [size, 3, side, side] in -1 to 1, about half of them mirrored, and ``size`` captions.
        """
        rng = np.random.default_rng(step)
        chosen = [self.scenes[number] for number in rng.choice(len(self.scenes), size, replace=False)]
        images = torch.from_numpy(np.stack([scene.image[:, :: rng.choice([-1, 1])] for scene in chosen]))
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1, [scene.caption for scene in chosen]
