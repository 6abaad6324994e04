"""Labelling a batch of images, of which some may be too much for the memory or more than the models can take."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import torch

from cliper.compiled import is_out_of_memory
from cliper.preprocess import Prepared
from cliper.segmenter import AllowedClasses, Prediction, Segmenter
from cluster import prometheus
from schemas.rows import Status

logger = logging.getLogger(__name__)

USUAL_PATCHES = 2500
"""No image has more with the published settings."""
REGROWTH = 50
HOPELESS = 16
"""If the models fail with so many images before they have labelled one, the images are not to blame."""


@dataclass(frozen=True)
class Failure:
    """Why an image has no prediction."""

    status: Status
    reason: str


DOES_NOT_FIT = Failure(
    Status.OUT_OF_MEMORY, "the image does not fit into the memory for labelling: give a smaller --shorter-side-px"
)


class SafeBatches:
    """Labels images, as many at a time as fit into the memory. No image costs another one its labels.

    Args:
        segmenter: the method.
        chunk_size: most images at a time; halved when memory runs out, doubled again after `REGROWTH` chunks.
        patch_size_px: side of the method's patches. Memory grows with images x patches^2: panoramas go fewer at a time.
        memory_bytes: on a CPU, where running out of memory ends the process, what there is. Images that need more are
            not tried.
    """

    def __init__(
        self, segmenter: Segmenter, chunk_size: int, patch_size_px: int, memory_bytes: float = math.inf
    ) -> None:
        self.segmenter, self.patch_size_px, self.memory_bytes = segmenter, patch_size_px, memory_bytes
        segmenter.largest_batch = chunk_size
        self.largest_chunk, self.chunks_since = chunk_size, 0
        self.has_worked, self.failures = False, 0

    @property
    def chunk_size(self) -> int:
        """Most images at a time, for now. The method knows it, because it may fill up smaller batches."""
        return self.segmenter.largest_batch

    def predict(
        self,
        prepared: Sequence[Prepared],
        allowed: AllowedClasses,
        keep_winners: bool = False,
    ) -> list[Prediction | Failure]:
        """One prediction per image, or why there is none. Arguments as for `Segmenter.predict`.

        Raises:
            torch.AcceleratorError: the GPU's state is lost. Nothing works any more in this process.
            Exception: the models fail with every image.
        """
        done: list[Prediction | Failure] = []
        with prometheus.timed_stage("label", len(prepared)):
            while len(done) < len(prepared):
                tried = self.next_chunk(prepared[len(done) :])
                chunk = slice(len(done), len(done) + tried)
                done += self.predict_chunk(prepared[chunk], allowed[chunk], keep_winners)
        return done

    def predict_chunk(
        self, prepared: Sequence[Prepared], allowed: AllowedClasses, keep_winners: bool
    ) -> Sequence[Prediction | Failure]:
        """The same for a few images; none at all if memory ran out and fewer must be tried."""
        if len(prepared) == 1 and self.segmenter.memory_bytes(prepared[0]) > self.memory_bytes:
            return [DOES_NOT_FIT]
        try:
            found = self.segmenter.predict(prepared, allowed, keep_winners)
        except Exception as error:
            if is_out_of_memory(error):
                torch.cuda.empty_cache()
                if len(prepared) == 1:
                    return [DOES_NOT_FIT]
                self.shrink(len(prepared))
                return []
            if isinstance(error, torch.AcceleratorError):
                raise
            if len(prepared) == 1:
                return [self.failure(error)]
            pairs = zip(prepared, allowed, strict=True)
            return [one for image, some in pairs for one in self.predict_chunk([image], [some], keep_winners)]
        self.has_worked = True
        prometheus.add(prometheus.MODEL_BATCHES, 1)
        self.grow()
        return found

    def failure(self, error: Exception) -> Failure:
        """What becomes of an image with which the models fail. Raises ``error`` if they always did."""
        self.failures += 1
        if not self.has_worked and self.failures >= HOPELESS:
            raise error
        logger.warning("the models failed with an image", exc_info=error)
        return Failure(Status.CRASHED, f"the models failed: {type(error).__name__}: {shorten(str(error), 200)}")

    def next_chunk(self, prepared: Sequence[Prepared]) -> int:
        """How many of the first images go together."""
        patches = 0.0
        for count, image in enumerate(prepared[: self.chunk_size]):
            patches = max(patches, image.clip.size / (3 * self.patch_size_px**2))
            if count and (count + 1) * patches**2 > self.largest_chunk * USUAL_PATCHES**2:
                return count
        return min(len(prepared), self.chunk_size)

    def shrink(self, tried: int) -> None:
        # Another thread may have been here.
        self.segmenter.largest_batch, self.chunks_since = min(self.chunk_size, tried // 2), 0
        logger.warning("%d images at a time do not fit into the memory; continuing with %d", tried, self.chunk_size)

    def grow(self) -> None:
        """A few images that need much memory must not make all others slow."""
        self.chunks_since += 1
        if self.chunk_size < self.largest_chunk and self.chunks_since >= REGROWTH:
            self.segmenter.largest_batch, self.chunks_since = min(2 * self.chunk_size, self.largest_chunk), 0
