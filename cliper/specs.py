"""What a process needs to know to build a method, and building it: models, queries and torch's settings."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME

from cliper.absent import images_at_once
from cliper.affinity import Affinity, ClipAffinity, TimmAffinity
from cliper.baseline_settings import BaselineMethod, BaselineSettings
from cliper.baselines import Baseline
from cliper.coarse import Queries
from cliper.compiled import is_out_of_memory
from cliper.diffusion import DiffusionModel
from cliper.loading import load_diffusion, load_vision_tower
from cliper.models import ClipSpec, DiffusionSpec
from cliper.pipeline import Cliper
from cliper.preprocess import InputSpec
from cliper.proxy import load_proxy, proxy_patch_size_px
from cliper.segmenter import Segmenter
from cliper.settings import MethodSettings, Preset
from cliper.timm_models import TimmSpec, load_timm
from cliper.vision import VisionTower
from schemas.embeddings import VocabularyEmbeddings

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable  # for tests, which check types at every call
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
        inputs: how images must be prepared.
        timm: timm's model to load, or None.
    """

    clip: ClipSpec
    diffusion: DiffusionSpec | None
    empty_prompt: np.ndarray | None
    embeddings: VocabularyEmbeddings
    settings: MethodSettings
    precision: str
    inputs: InputSpec
    timm: TimmSpec | None = None

    def images_at_once(self, batch: int) -> int:
        """See `SegmenterSpec.images_at_once`."""
        return images_at_once(self.settings, batch)

    def build(self, device: torch.device, batch: int | None = None) -> Cliper:
        """Load the models. Neither text encoder nor the autoencoder's decoder is among them."""
        dtype = resolve_precision(self.precision, device)
        tower = load_vision_tower(self.clip, device, dtype)
        queries = build_queries(self.embeddings, self.settings.preset)
        return build_cliper(tower, queries, self.settings, self.load_affinity(tower, device, dtype), batch)

    def load_affinity(self, tower: VisionTower, device: torch.device, dtype: torch.dtype) -> Affinity | None:
        """What sharpens maps; None without."""
        settings = self.settings
        if self.diffusion is not None and self.empty_prompt is not None:
            prompt = torch.tensor(self.empty_prompt)
            return load_diffusion(
                self.diffusion, prompt, device, dtype, settings.diffusion_timestep, settings.diffusion_layers
            )
        if self.timm is not None:
            return TimmAffinity(load_timm(self.timm, device, dtype), self.timm.heads)
        return ClipAffinity.of(tower) if settings.needs_affinity else None


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
    tower: VisionTower, queries: Queries, settings: MethodSettings, affinity: Affinity | None, batch: int | None
) -> Cliper:
    """CLIPer from loaded models. On a GPU with kernels and compiled parts, each compared with its plain version first,
    and warm.
    """
    if tower.device.type != "cuda":
        return Cliper(tower, queries, settings, affinity)
    from cliper.selfcheck import check_compiled  # Triton is only there where torch knows CUDA

    problems: list[str] = []
    if tower.dtype != torch.float32:
        problems += check_kernels(tower.device, tower.dtype)
        tower = replace(tower, kernels=not problems)
    while True:
        cliper = Cliper(tower, queries, settings, affinity, batch)
        cliper.problems = problems
        try:
            if isinstance(affinity, DiffusionModel):
                check_compiled(affinity, batch or 1, problems)
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


def best_device() -> torch.device:
    """A GPU of this machine if there is one, else its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The number format: ``auto`` is fp16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    return PRECISIONS[precision]


def build_queries(embeddings: VocabularyEmbeddings, preset: Preset) -> Queries:
    """The embeddings file's rows as the method's query list."""
    build = Queries.build_open if preset == "open" else Queries.build
    classes, background = torch.tensor(embeddings.classes), torch.tensor(embeddings.background)
    queries = build(classes, background, torch.tensor(embeddings.class_of_row))
    if (visual := embeddings.visual) is None:
        return queries
    shown = [embeddings.class_names.index(name) for name in visual.names]
    return queries.with_examples(torch.tensor(visual.rows), torch.tensor(visual.offsets), shown)


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


@contextmanager
def torch_flags(on_gpu: bool) -> Iterator[None]:
    """`set_torch_flags` for a while, for processes that do other things too."""
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    before = cudnn.benchmark, cudnn.allow_tf32
    set_torch_flags(on_gpu)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.allow_tf32 = before


def keep_compiled_code() -> None:
    """Keep it beside the node's models, so that the next process and the next job start sooner."""
    folder = Path(HF_HOME) / "compiled"
    if os.access(HF_HOME, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
