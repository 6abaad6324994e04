"""A method that labels images, as the rest of the program sees it: what it is asked, and what it finds."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Integer

from cliper.preprocess import ImageArray, Prepared
from cliper.runs import Runs

AllowedClasses = Sequence[Collection[int] | None]
"""Per image the classes (from 0) that may win, or None for all."""


class Winners(NamedTuple):
    """Who wins each pixel before a threshold on the value makes it background.

    Attributes:
        value: the winner's value.
        labels: c + 1 for class c; 0 where no class has a value above 0.
    """

    value: Float32[np.ndarray, "height width"]
    labels: Integer[np.ndarray, "height width"]


@dataclass(frozen=True)
class Prediction:
    """What a method finds in one image, on the CPU.

    Attributes:
        scores: max-pooled image-level class scores, at least 0.
        runs: the label map at the image's own size.
        winners: None unless asked for.
        lost_to: the background word (from 0) that is more probable than a class where the class's map is highest, -1 if
            none is; None if the method does not say.
        refined: with ``skip_absent`` the classes (from 0) whose maps were sharpened. Scores of the others are the
            maxima of their coarse maps. None without.
    """

    scores: Float32[np.ndarray, " classes"]
    runs: Runs
    winners: Winners | None = None
    lost_to: Integer[np.ndarray, " classes"] | None = None
    refined: list[int] | None = None


@runtime_checkable  # for tests, which check types at every call
class Segmenter(Protocol):
    """A method that labels images.

    Attributes:
        largest_batch: most images that should go together. Who runs out of memory lowers it.
        problems: what failed when the models were loaded, and is done in another way.
    """

    largest_batch: int
    problems: Sequence[str]

    def memory_bytes(self, image: Prepared) -> int:
        """Memory that labelling an image takes beside the models, about; the largest parts of it."""

    def predict(
        self, prepared: Sequence[Prepared], allowed: AllowedClasses | None = None, keep_winners: bool = False
    ) -> list[Prediction]:
        """Label images of any sizes; each result depends on its own image and seed alone.

        Args:
            allowed: None allows all classes everywhere.
            keep_winners: also return who wins each pixel.
        """


def batch_limit(device: torch.device) -> int:
    """Most images that should go together. On a CPU each goes alone: batches bring no speed there, and sums in another
    order would make an image's labels depend on its neighbours (up to 12 label pixels per image in a trial)."""
    return sys.maxsize if device.type == "cuda" else 1


def attention_bytes(pixels: ImageArray | None, patch_size_px: int) -> int:
    """Memory of one attention matrix of prepared pixels in float32; 0 if there are none."""
    if pixels is None:
        return 0
    height, width, _ = pixels.shape
    return 4 * (height // patch_size_px * (width // patch_size_px)) ** 2
