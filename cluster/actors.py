"""The actor that labels images: where Ray meets torch."""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from huggingface_hub.constants import HF_HOME
from ray.actor import ActorHandle

from cliper.baseline_settings import BaselineMethod, BaselineSettings
from cliper.baselines import Baseline
from cliper.coarse import Queries
from cliper.diffusion import DiffusionModel
from cliper.loading import load_diffusion, load_vision_tower
from cliper.models import ClipSpec, DiffusionSpec
from cliper.pipeline import Cliper, Segmenter, images_at_once
from cliper.preprocess import InputSpec, Prepared
from cliper.proxy import load_proxy, proxy_patch_size_px
from cliper.settings import MethodSettings, Preset
from cliper.vision import VisionTower
from cluster import prometheus
from cluster.batches import Failure, SafeBatches, is_out_of_memory
from cluster.corpus.prepare import read_prepared
from cluster.encoders import Encoder, Row
from cluster.progress import deaths, report
from cluster.sizing import Cluster
from cluster.watchdog import Watchdog
from schemas.embeddings import VocabularyEmbeddings
from schemas.rows import Status

logger = logging.getLogger(__name__)

BAD_SCORES = Failure(Status.BAD_SCORES, "the models gave scores that are no finite numbers (--precision fp32 may help)")
DIED_OF_IT = Failure(Status.CRASHED, "the labelling process died again and again with this image")
DEATHS = 2
"""After so many deaths of processes an image is labelled alone, and after as many more it is given up."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class SegmenterSpec(Protocol):
    """What an actor needs to know to build a method."""

    @property
    def inputs(self) -> InputSpec:
        """How images must be prepared."""

    def images_at_once(self, batch: int) -> int:
        """Images that an actor on a GPU should get together, if its models take them in batches."""

    def build(self, device: torch.device, batch: int | None = None) -> Segmenter:
        """Load the models.

        Args:
            device: of the models.
            batch: images that go through the models together on a GPU; None for as many as there are.
        """


@dataclass(frozen=True)
class CliperSpec:
    """CLIPer and its models.

    Attributes:
        clip: the image tower to load.
        diffusion: the diffusion model to load, or None.
        empty_prompt: float32 [1, text tokens, text width], the empty prompt's embedding; None without diffusion.
        embeddings: the vocabulary.
        settings: the method's settings.
        precision: number format of the models' weights and activations; ``auto`` depends on the device.
        diffusion_side_px: side of the diffusion model's input; None without.
    """

    clip: ClipSpec
    diffusion: DiffusionSpec | None
    empty_prompt: np.ndarray | None
    embeddings: VocabularyEmbeddings
    settings: MethodSettings
    precision: str
    diffusion_side_px: int | None

    @property
    def inputs(self) -> InputSpec:
        """How images must be prepared."""
        patch_size_px = self.clip.patch_size_px
        return InputSpec(self.settings.shorter_side_px, patch_size_px, diffusion_side_px=self.diffusion_side_px)

    def images_at_once(self, batch: int) -> int:
        """See `SegmenterSpec.images_at_once`."""
        return images_at_once(self.settings, batch)

    def build(self, device: torch.device, batch: int | None = None) -> Cliper:
        """Load the models. Neither text encoder nor the autoencoder's decoder is among them."""
        dtype = resolve_precision(self.precision, device)
        tower = load_vision_tower(self.clip, device, dtype)
        diffusion = None
        if self.diffusion is not None and self.empty_prompt is not None:
            diffusion = load_diffusion(self.diffusion, torch.tensor(self.empty_prompt), device, dtype)
        queries = build_queries(self.embeddings, self.settings.preset)
        return build_cliper(tower, queries, self.settings, diffusion, batch)


@dataclass(frozen=True)
class BaselineSpec:
    """A baseline and its models.

    Attributes:
        method: which one.
        clip, embeddings, precision: as in `CliperSpec`.
        settings: the baseline's settings.
        proxy: timm's name or folder of ProxyCLIP's second model; None for the others.
    """

    method: BaselineMethod
    clip: ClipSpec
    embeddings: VocabularyEmbeddings
    settings: BaselineSettings
    precision: str
    proxy: str | None

    @property
    def inputs(self) -> InputSpec:
        """How images must be prepared."""
        return self.settings.inputs(self.clip.patch_size_px, proxy_patch_size_px(self.proxy) if self.proxy else None)

    def images_at_once(self, batch: int) -> int:
        """See `SegmenterSpec.images_at_once`."""
        return batch

    def build(self, device: torch.device, batch: int | None = None) -> Baseline:
        """Load the models. Each image goes through them alone."""
        dtype = resolve_precision(self.precision, device)
        tower = load_vision_tower(self.clip, device, dtype)
        proxy = load_proxy(self.proxy, device, dtype) if self.proxy else None
        return Baseline(tower, build_queries(self.embeddings, "release"), self.method, self.settings, proxy)


def build_cliper(
    tower: VisionTower, queries: Queries, settings: MethodSettings, diffusion: DiffusionModel | None, batch: int | None
) -> Cliper:
    """CLIPer from loaded models. On a GPU with kernels and compiled parts, each compared with its plain version first,
    and warm.
    """
    if tower.device.type != "cuda":
        return Cliper(tower, queries, settings, diffusion)
    from cliper.selfcheck import check_compiled  # Triton is only there where torch knows CUDA

    problems: list[str] = []
    if tower.dtype != torch.float32:
        problems += check_kernels(tower.device, tower.dtype)
        tower = replace(tower, kernels=not problems)
    while True:
        cliper = Cliper(tower, queries, settings, diffusion, batch)
        cliper.problems = problems
        try:
            if diffusion is not None:
                check_compiled(diffusion, batch or 1, problems)
            cliper.warm_up()
            return cliper
        except Exception as error:
            if not is_out_of_memory(error) or (batch or 1) == 1:
                raise
            batch = (batch or 1) // 2
            logger.warning("the GPU's memory does not hold a batch: trying batches of %d", batch)
            torch.cuda.empty_cache()


def check_kernels(device: torch.device, dtype: torch.dtype) -> list[str]:
    """What is wrong with the kernels on this GPU in a half precision; empty if they do what their plain versions do."""
    from cliper.selfcheck import Case, disagreements  # Triton is only there where torch knows CUDA

    return disagreements(device, Case(dtype))


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The number format: ``auto`` is fp16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    return PRECISIONS[precision]


def build_queries(embeddings: VocabularyEmbeddings, preset: Preset) -> Queries:
    """The embeddings file's rows as the method's query list."""
    build = Queries.build_open if preset == "open" else Queries.build
    classes, background = torch.tensor(embeddings.classes), torch.tensor(embeddings.background)
    return build(classes, background, torch.tensor(embeddings.class_of_row))


def load_models(spec: SegmenterSpec, batch: int) -> Segmenter:
    """Load the models in an actor's process, onto its GPU if it has one. Arguments as for `SegmenterSpec.build`."""
    on_gpu = bool(ray.get_gpu_ids())
    set_torch_flags(on_gpu)
    return spec.build(torch.device("cuda" if on_gpu else "cpu"), batch)


def set_torch_flags(on_gpu: bool) -> None:
    """How torch computes in a process that labels."""
    if not on_gpu:
        # Not shared out among actors: sums split over other numbers of threads round differently, and the number of
        # actors must not change a row.
        torch.set_num_threads(os.cpu_count() or 1)
    else:
        keep_compiled_code()
    torch.backends.cudnn.benchmark = on_gpu  # the parts with many convolutions see one shape
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in convolutions too


def keep_compiled_code() -> None:
    """Keep it beside the node's models, so that the next process and the next job start sooner."""
    folder = Path(HF_HOME) / "compiled"
    if os.access(HF_HOME, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


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
        self.watchdog = Watchdog(stall_timeout_s)
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
        prometheus.add(prometheus.PLAIN_KERNELS, not self.problems_told and bool(problems))
        self.problems_told += len(problems)

    def __call__(self, batch: pa.Table) -> pa.Table:
        try:
            with self.watchdog.watching():
                return self.label_batch(batch)
        except torch.AcceleratorError:
            logger.exception("the GPU's state is lost: the process ends, so that Ray replaces it")
            os._exit(1)

    def label_batch(self, batch: pa.Table) -> pa.Table:
        """The rows of a batch. Images with which processes have died are labelled after the others."""
        prepared = read_prepared(batch.filter(pc.equal(batch["status"], Status.OK.value)), self.inputs)
        rows = batch.drop_columns(["clip", "affinity"]).to_pylist()
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
        report(self.counter, ok=ok, failed=len(rows) - ok)
        return pa.Table.from_pylist(rows, schema=self.encoder.schema)

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
        started = time.monotonic()
        allowed = [self.encoder.allowed(row) for row, _ in images]
        predictions = self.batches.predict([image for _, image in images], allowed, self.encoder.keep_winners)
        seconds = (time.monotonic() - started) / max(len(images), 1)
        with prometheus.timed_stage("encode", len(images)):
            for (row, _), prediction in zip(images, predictions, strict=True):
                if isinstance(prediction, Failure):
                    give_up(row, prediction)
                elif not np.isfinite(prediction.scores).all():
                    give_up(row, BAD_SCORES)
                else:
                    row |= self.encoder.encode(row, prediction, seconds)


def give_up(row: Row, failure: Failure) -> None:
    """The row of an image that has no labels."""
    row.update(status=failure.status, error=f"{row['uri']}: {failure.reason}")
