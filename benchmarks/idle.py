"""A model that takes no time, for measuring everything around it. In a module of its own, so that actors find it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from cliper.pipeline import Prediction
from cliper.preprocess import InputSpec, Prepared
from cliper.runs import Runs

BATCH_SIZE = 8
REGIONS_HW = (6, 8)
"""The idle model's label map: so many rectangles, each of a random class."""


@dataclass(frozen=True)
class IdleSpec:
    """Builds a model that labels without looking, so that what remains is everything around the model.

    Attributes:
        inputs: how images are prepared.
        classes: number of classes.
        clock: file that the CPU time of the labelling process is written to, batch by batch.
    """

    inputs: InputSpec
    classes: int
    clock: str

    def build(self, device: torch.device) -> "Idle":
        return Idle(self.classes, Path(self.clock))


class Idle:
    """Rectangles of random classes, whatever the image; one batch at a time, as on a GPU."""

    largest_batch = BATCH_SIZE

    def __init__(self, classes: int, clock: Path) -> None:
        self.classes, self.clock = classes, clock
        self.device = Lock()

    def predict(
        self, prepared: Sequence[Prepared], allowed: Any = None, keep_winners: bool = False
    ) -> list[Prediction]:
        """See `cliper.pipeline.Segmenter.predict`. Making up runs is not counted as CPU time: a model does that."""
        with self.device:
            before = time.process_time()
            scores = np.ones(self.classes, np.float32)
            found = [Prediction(scores, self.rectangles(image)) for image in prepared]
            own = time.process_time() - before
            with self.clock.open("a") as file:
                file.write(f"{before} {own} {len(prepared)}\n")
        return found

    def rectangles(self, image: Prepared) -> Runs:
        """The runs of the label map, made without the map: on a GPU it would cost no CPU time either."""
        height, width = image.image_hw
        regions = np.random.default_rng(image.seed).integers(0, self.classes + 1, REGIONS_HW)
        of_columns = regions[:, np.arange(width) * REGIONS_HW[1] // width].T
        tops = -(-np.arange(REGIONS_HW[0]) * height // REGIONS_HW[0])
        starts = (np.arange(width)[:, None] * height + tops).ravel()
        labels = of_columns.ravel()
        begins = np.diff(labels, prepend=-1) != 0
        return Runs(starts[begins], labels[begins], image.image_hw)
