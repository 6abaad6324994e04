"""The actor that labels images: where Ray meets torch."""

import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.actor import ActorHandle

from cliper.preprocess import Prepared
from cliper.rows import NOT_FINITE
from cliper.segmenter import Segmenter
from cliper.specs import SegmenterSpec, set_torch_flags
from cluster import prometheus
from cluster.batches import Failure, SafeBatches
from cluster.corpus.prepare import KEPT, read_prepared
from cluster.encoders import Encoder, Row
from cluster.progress import deaths, report
from cluster.sizing import Cluster
from cluster.watchdog import Watchdog
from schemas.rows import Status

logger = logging.getLogger(__name__)

BAD_SCORES = Failure(Status.BAD_SCORES, NOT_FINITE)
DIED_OF_IT = Failure(Status.CRASHED, "the labelling process died again and again with this image")
DEATHS = 2
"""After so many deaths of processes an image is labelled alone, and after as many more it is given up."""


def load_models(spec: SegmenterSpec, batch: int) -> Segmenter:
    """Load the models in an actor's process, onto its GPU if it has one. Arguments as for `SegmenterSpec.build`."""
    on_gpu = bool(ray.get_gpu_ids())
    set_torch_flags(on_gpu)
    return spec.build(torch.device("cuda" if on_gpu else "cpu"), batch)


class WorkTime:
    """Measures how long at least one thread works, and how long none does, since the first one began."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.working_threads, self.since = 0, 0.0
        self.spent_s = {"busy": 0.0, "idle": 0.0}

    @contextmanager
    def working(self) -> Iterator[None]:
        """While this thread works."""
        self.change(1)
        try:
            yield
        finally:
            self.change(-1)

    def change(self, threads: int) -> None:
        with self.lock:
            now = time.monotonic()
            if self.since:
                self.spent_s["busy" if self.working_threads else "idle"] += now - self.since
            self.since = now
            self.working_threads += threads

    def take_ms(self) -> dict[str, int]:
        """``busy_ms`` and ``idle_ms`` since the last call."""
        self.change(0)
        with self.lock:
            spent, self.spent_s = self.spent_s, {"busy": 0.0, "idle": 0.0}
        return {f"{name}_ms": round(1000 * seconds) for name, seconds in spent.items()}


class Labeller:
    """A Ray Data actor: prepared images in, rows of the encoder's schema out.

    Args:
        spec: the method and its models.
        encoder: makes rows of predictions.
        counter: is told how many images are done.
        batch: images that go through the models together on a GPU.
        stall_timeout_s: the process ends, and Ray replaces it, if a batch takes longer.
    """

    def __init__(
        self, spec: SegmenterSpec, encoder: Encoder, counter: ActorHandle, batch: int, stall_timeout_s: float
    ) -> None:
        self.encoder, self.counter, self.inputs = encoder, counter, spec.inputs
        self.watchdog, self.worked = Watchdog(stall_timeout_s), WorkTime()
        segmenter = load_models(spec, batch)
        memory_bytes = math.inf if ray.get_gpu_ids() else Cluster.now().node_memory_bytes
        self.batches = SafeBatches(segmenter, segmenter.largest_batch, spec.inputs.patch_size_px, memory_bytes)
        self.problems_told = 0
        self.tell_problems()

    def tell_problems(self) -> None:
        """Tell what runs slower than it could. A part may also fail later, with a batch of another size."""
        problems = self.batches.segmenter.problems[self.problems_told :]
        for problem in problems:
            logger.warning("slower than it could be: %s", problem)
            self.counter.note.remote(f"Labelling is slower than it could be: {problem}")
        prometheus.add(prometheus.SLOW_PROCESSES, not self.problems_told and bool(problems))
        self.problems_told += len(problems)

    def __call__(self, batch: pa.Table) -> pa.Table:
        try:
            with self.watchdog.watching(), self.worked.working():
                return self.label_batch(batch)
        except torch.AcceleratorError:
            logger.exception("the GPU's state is lost: the process ends, so that Ray replaces it")
            os._exit(1)

    def label_batch(self, batch: pa.Table) -> pa.Table:
        """The rows of a batch. Images with which processes have died are labelled after the others."""
        prepared = read_prepared(batch.filter(pc.equal(batch["status"], Status.OK.value)), self.inputs)
        kept = [name for name in batch.column_names if name.startswith(KEPT)]
        rows = batch.drop_columns(["clip", "affinity", *kept]).to_pylist()
        ready = [row for row in rows if row["status"] == Status.OK]
        names = [row["image_id"] for row in ready]
        died = deaths(self.counter, names)
        pairs = list(zip(ready, prepared, strict=True))
        self.label([pair for pair, count in zip(pairs, died, strict=True) if count < DEATHS])
        for pair, count in zip(pairs, died, strict=True):
            if count >= DEATHS:
                self.label_alone(*pair)
        self.counter.end.remote(names)
        self.tell_problems()
        prometheus.add_images(row["status"] for row in rows)
        ok = sum(row["status"] == Status.OK for row in rows)
        report(self.counter, ok=ok, failed=len(rows) - ok, **self.worked.take_ms())
        table = pa.Table.from_pylist(rows, schema=self.encoder.schema)
        for name in kept:
            table = table.append_column(name.removeprefix(KEPT), batch[name])
        return table

    def label_alone(self, row: Row, image: Prepared) -> None:
        """Label one of the images with which processes have died. If they die of it alone too, it is given up."""
        name = f"{row['image_id']} alone"
        if deaths(self.counter, [name])[0] < DEATHS:
            logger.warning("the labelling process died %d times with %s: labelling it alone", DEATHS, row["image_id"])
            self.label([(row, image)])
        else:
            give_up(row, DIED_OF_IT)
        self.counter.end.remote([name])

    def label(self, images: Sequence[tuple[Row, Prepared]]) -> None:
        """Add to each row what labelling adds, or a failure."""
        label_rows(self.batches, self.encoder, images)


def label_rows(batches: SafeBatches, encoder: Encoder, images: Sequence[tuple[Row, Prepared]]) -> None:
    """Add to each row what labelling adds, or a failure."""
    started = time.monotonic()
    allowed = [encoder.allowed(row) for row, _ in images]
    predictions = batches.predict([image for _, image in images], allowed, encoder.keep_winners)
    seconds = (time.monotonic() - started) / max(len(images), 1)
    with prometheus.timed_stage("encode", len(images)):
        for (row, _), prediction in zip(images, predictions, strict=True):
            if isinstance(prediction, Failure):
                give_up(row, prediction)
            elif not np.isfinite(prediction.scores).all():
                give_up(row, BAD_SCORES)
            else:
                row |= encoder.encode(row, prediction, seconds)


def give_up(row: Row, failure: Failure) -> None:
    """The row of an image that has no labels."""
    row.update(status=failure.status, error=f"{row['uri']}: {failure.reason}")
