"""The actor that labels pictures: the only place where Ray's batches meet torch."""

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.actor import ActorHandle

from cliper.baselines import Baseline, BaselineMethod, BaselineSettings, Prediction
from cliper.coarse import Queries
from cliper.labels import winning_classes
from cliper.loading import load_diffusion, load_vision_tower
from cliper.models import ClipSpec, DiffusionSpec
from cliper.pipeline import Annotation, Cliper
from cliper.proxy import load_proxy
from cliper.settings import MethodSettings
from cluster import prometheus
from cluster.progress import report
from schemas.embeddings import VocabularyEmbeddings
from schemas.rows import ROW_SCHEMA, Status
from schemas.runs import annotations_from_labels

logger = logging.getLogger(__name__)

Method = Literal["cliper"] | BaselineMethod
TOO_LARGE_FOR_GPU = "the picture does not fit into the GPU's memory"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class AnnotatorSpec:
    """What an actor needs to know to build its models.

    Attributes:
        clip: the image tower to load.
        diffusion: the diffusion model to load, or None.
        empty_prompt: float32 [1, text tokens, text width], the empty prompt's embedding; None without diffusion.
        embeddings: the vocabulary.
        settings: the method's settings.
        precision: number format of the models' weights and activations; ``auto`` depends on the device.
    """

    clip: ClipSpec
    diffusion: DiffusionSpec | None
    empty_prompt: np.ndarray | None
    embeddings: VocabularyEmbeddings
    settings: MethodSettings
    precision: str

    def build(self, device: torch.device) -> Cliper:
        """Load the models. Neither text encoder nor the autoencoder's decoder is among them."""
        dtype = resolve_precision(self.precision, device)
        tower = load_vision_tower(self.clip, device, dtype)
        diffusion = None
        if self.diffusion is not None and self.empty_prompt is not None:
            diffusion = load_diffusion(self.diffusion, torch.tensor(self.empty_prompt), device, dtype)
            if device.type == "cuda":
                diffusion.compile()
        return Cliper(tower, build_queries(self.embeddings), self.settings, diffusion)


@dataclass(frozen=True)
class BaselineSpec:
    """What an actor needs to know to build a baseline.

    Attributes:
        method: which one.
        clip, embeddings, precision: as in `AnnotatorSpec`.
        settings: the baseline's settings.
        proxy: timm's name or folder of ProxyCLIP's second model; None for the others.
    """

    method: BaselineMethod
    clip: ClipSpec
    embeddings: VocabularyEmbeddings
    settings: BaselineSettings
    precision: str
    proxy: str | None

    def build(self, device: torch.device) -> Baseline:
        """Load the models."""
        dtype = resolve_precision(self.precision, device)
        tower = load_vision_tower(self.clip, device, dtype)
        proxy = load_proxy(self.proxy, device, dtype) if self.proxy else None
        return Baseline(tower, build_queries(self.embeddings), self.method, self.settings, proxy)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The number format: ``auto`` is fp16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    return PRECISIONS[precision]


def build_queries(embeddings: VocabularyEmbeddings) -> Queries:
    """The embeddings file's rows as the method's query list."""
    classes, background = torch.tensor(embeddings.classes), torch.tensor(embeddings.background)
    return Queries.build(classes, background, torch.tensor(embeddings.class_of_row))


class FittingBatches:
    """Labels pictures, as many at a time as fit into the GPU's memory.

    Args:
        cliper: the method, or a baseline.
        at_once: most pictures at a time; halved for good whenever memory runs out.
    """

    def __init__(self, cliper: Cliper | Baseline, at_once: int) -> None:
        self.cliper, self.at_once = cliper, at_once

    def annotate(
        self,
        images: Sequence[np.ndarray],
        seeds: Sequence[int],
        allowed: Sequence[Collection[int] | None] | None = None,
    ) -> list[Annotation | Prediction | None]:
        """One annotation per picture; None if it does not fit even alone.

        Args:
            images: RGB pictures, uint8 [height, width, 3].
            seeds: one per picture, for the diffusion noise.
            allowed: per picture the classes (from 0) that may win, or None for all.
        """
        done: list[Annotation | Prediction | None] = []
        with prometheus.timed_stage("label", len(images)):
            while len(done) < len(images):
                chunk = slice(len(done), len(done) + self.at_once)
                tried = len(images[chunk])
                try:
                    done += self.cliper.annotate(
                        images[chunk], seeds[chunk], allowed=allowed[chunk] if allowed else None
                    )
                    prometheus.add(prometheus.MODEL_BATCHES, 1)
                except torch.OutOfMemoryError:
                    if tried == 1:
                        done.append(None)
                        continue
                    self.at_once = min(self.at_once, tried // 2)  # another thread may have been here before
                    torch.cuda.empty_cache()
                    logger.warning(
                        "%d pictures at a time do not fit into the GPU's memory; going on with %d", tried, self.at_once
                    )
        return done


def load_models(spec: AnnotatorSpec | BaselineSpec) -> FittingBatches:
    """Load the models in an actor's process, onto its GPU if it has one."""
    on_gpu = bool(ray.get_gpu_ids())
    if not on_gpu:
        # Not shared out among actors: sums split over other numbers of threads round differently, and the number of
        # actors must not change a row.
        torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in convolutions too
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled here runs as it is, with a warning
    cliper = spec.build(torch.device("cuda" if on_gpu else "cpu"))
    return FittingBatches(cliper, cliper.largest_batch)


def pixels_of(row: dict[str, Any]) -> np.ndarray:
    """The picture of a decoded row, uint8 [height, width, 3]; its bytes are taken out of the row."""
    return np.frombuffer(row.pop("rgb"), np.uint8).reshape(row["height"], row["width"], 3).copy()


def winning_classes_of(
    cliper: Cliper | Baseline, annotation: Annotation | Prediction, image_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Value and label of the winning class at every pixel before a threshold makes it background, both [height, width].

    Raises:
        TypeError: a baseline, which has no such thresholds.
    """
    if not isinstance(cliper, Cliper) or not isinstance(annotation, Annotation):
        raise TypeError("only CLIPer has thresholds on map values")
    floors = torch.zeros(len(annotation.scores))
    value, labels = winning_classes(annotation.refined, annotation.scores, image_hw, cliper.settings, floors)
    return value.cpu().numpy(), labels.cpu().numpy()


class Annotator:
    """A Ray Data actor: decoded images in, rows of `schemas.rows.ROW_SCHEMA` out."""

    def __init__(self, spec: AnnotatorSpec, counter: ActorHandle) -> None:
        self.batches, self.counter = load_models(spec), counter

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        decoded = [row for row in rows if row["status"] == Status.OK]
        annotations = self.batches.annotate([pixels_of(row) for row in decoded], [row["seed"] for row in decoded])
        with prometheus.timed_stage("encode", len(decoded)):
            for row, annotation in zip(decoded, annotations, strict=True):
                if annotation is None:
                    row |= {"status": Status.OUT_OF_MEMORY, "error": f"{row['uri']}: {TOO_LARGE_FOR_GPU}"}
                    continue
                scores = annotation.scores.cpu().numpy()
                row["class_scores"] = scores
                row["annotations"] = annotations_from_labels(annotation.labels.cpu().numpy(), scores)
        prometheus.add_images(row["status"] for row in rows)
        ok = sum(row["status"] == Status.OK for row in rows)
        report(self.counter, ok=ok, failed=len(rows) - ok)
        return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
