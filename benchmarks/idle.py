"""A model that takes no time, for measuring everything around it. In a module of its own, so that actors find it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from cliper.preprocess import InputSpec, Prepared
from cliper.runs import Runs
from cliper.segmenter import Prediction

REGIONS_HW = (6, 8)
DEVICE = Lock()
"""One batch at a time, as on a GPU."""


@dataclass
class Idle:
    """Labels images without looking: with rectangles of random classes.

    Attributes:
        inputs: how images are prepared.
        classes: number of classes.
        clock: file with a line for each batch: CPU time of the process before it, CPU time in the model, images.
        largest_batch: most images at a time.
    """

    inputs: InputSpec
    classes: int
    clock: Path
    largest_batch: int = 8
    problems: Sequence[str] = ()

    def images_at_once(self, batch: int) -> int:
        """See `cliper.specs.SegmenterSpec.images_at_once`."""
        return batch

    def build(self, device: torch.device, batch: int | None = None) -> "Idle":
        """Start a new clock in the actor."""
        self.clock.write_text("")
        return self

    def memory_bytes(self, image: Prepared) -> int:
        """Next to none."""
        return 0

    def predict(
        self, prepared: Sequence[Prepared], allowed: Any = None, keep_winners: bool = False
    ) -> list[Prediction]:
        """See `cliper.segmenter.Segmenter.predict`."""
        with DEVICE:
            before = time.process_time()
            found = [Prediction(np.ones(self.classes, np.float32), self.rectangles(image)) for image in prepared]
            with self.clock.open("a") as file:
                file.write(f"{before} {time.process_time() - before} {len(prepared)}\n")
        return found

    def rectangles(self, image: Prepared) -> Runs:
        """The runs of the label map, made without the map: on a GPU it would cost no CPU time either."""
        height, width = image.image_hw
        regions = np.random.default_rng(image.seed).integers(0, self.classes + 1, REGIONS_HW)
        labels = regions[:, np.arange(width) * REGIONS_HW[1] // width].T.ravel()
        tops = -(-np.arange(REGIONS_HW[0]) * height // REGIONS_HW[0])
        starts = (np.arange(width)[:, None] * height + tops).ravel()
        begins = np.diff(labels, prepend=-1) != 0
        return Runs(starts[begins], labels[begins], image.image_hw)
