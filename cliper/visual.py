"""From labelled examples to visual queries: what a class looks like, as logits beside those of its words.

The direction of a class in the space of the features is that of Fisher's linear discriminant: the mean of its patches
less the mean of all, decorrelated by the covariance of all patches of the examples, shrunk towards a sphere. Used with
CLIP's image-level features, it is a strong way to adapt without training (Wang et al., "A Hard-to-Beat Baseline for
Training-free CLIP-based Adaptation", ICLR 2024). Here the scale is not a fitted one: between the mean patch and the
class's mean patch the logit grows by `EVIDENCE`. Values were chosen on photographs, see docs/beyond.md.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from torch.nn import functional as F

from cliper.examples import Examples
from cliper.fusion import fuse
from cliper.loading import load_vision_tower
from cliper.models import ClipSpec, ModelError
from cliper.preprocess import ImageArray
from cliper.settings import MethodSettings
from cliper.specs import best_device, torch_flags
from cliper.transfer import channels_first
from cliper.vision import VisionTower
from schemas.embeddings import VisualQueries, VocabularyEmbeddings
from schemas.errors import RequestError

LATE = 0.5
"""Share of the features that are late enough to tell classes apart by their looks."""
SHRINKAGE = 0.2
"""Share of the sphere in the covariance. The patches of a few images are many and alike."""
EVIDENCE = 5.0
"""Logits between the mean patch and the mean patch of a class."""
ALONE = 10.0
"""The same for a class without words."""
DOUBT = 0.1
"""Share of them that a patch must have before the class gains."""
LEAST_DISTANCE = 1.0
"""Squared Mahalanobis distance of a class from the mean patch below which its evidence fades: examples with nothing
but the class do not say what sets it apart."""
LEAST_VARIANCE = 1e-9
"""Of each dimension, for examples of a single colour."""


def add_examples(
    embeddings: VocabularyEmbeddings,
    examples: Examples | None,
    clip: ClipSpec,
    settings: MethodSettings,
    device: torch.device | None = None,
) -> VocabularyEmbeddings:
    """The vocabulary with visual queries for the classes that have examples.

    Args:
        examples: None leaves the vocabulary as it is.
        clip: the model that the words were embedded with.
        settings: with which images will be labelled.
        device: of the image tower; None for a GPU of this machine if there is one.

    Raises:
        RequestError: the image tower cannot be loaded.
    """
    if examples is None:
        return embeddings
    try:
        tower = load_vision_tower(clip, device or best_device(), torch.float32)
    except ModelError as error:
        raise RequestError(f"--clip: {error}") from error
    with torch_flags(tower.device.type == "cuda"):
        return replace(embeddings, visual=visual_queries(tower, examples, settings, embeddings.wordless))


@torch.inference_mode()
def visual_queries(
    tower: VisionTower, examples: Examples, settings: MethodSettings, wordless: tuple[str, ...] = ()
) -> VisualQueries:
    """Visual queries of the examples' classes.

    Args:
        tower: in float32.
        settings: with which images will be labelled.
        wordless: classes whose examples have to stand in for words too.
    """
    seen = ((late_features(tower, example.clip, settings), example.shares) for example in examples.images)
    return queries_from(seen, examples.names, wordless)


def queries_from(
    seen: Iterable[tuple[Float[Tensor, "late_features patches dimensions"], Float32[np.ndarray, "classes patches"]]],
    names: tuple[str, ...],
    wordless: Collection[str] = (),
) -> VisualQueries:
    """Visual queries from the features of images and the shares of the classes in their patches."""
    sums = reduce(add_up, (moments(*of_image) for of_image in seen))
    count, total, products, masses, of_classes = sums
    mean = total / count
    covariance = products / count - mean[:, :, None] * mean[:, None]
    logits = mean.new_tensor([ALONE if name in wordless else EVIDENCE for name in names])
    rows, offsets = discriminants(mean, covariance, of_classes / masses[:, None], logits)
    return VisualQueries(names, rows.float().cpu().numpy(), offsets.float().cpu().numpy())


def late_features(
    tower: VisionTower, clip: ImageArray, settings: MethodSettings
) -> Float[Tensor, "late_features patches dimensions"]:
    """The L2-normalised dense features from which the looks of an image's patches are told."""
    dense = fuse(tower, tower.normalize(channels_first([clip], tower.device)), settings).dense[:, 0]
    return F.normalize(dense[-max(1, round(LATE * len(dense))) :], dim=-1)


def moments(
    features: Float[Tensor, "late_features patches dimensions"], shares: Float32[np.ndarray, "classes patches"]
) -> list[Tensor]:
    """Sums over an image's patches, in double precision: their number, their features and the products of these; and
    for every class its shares, and the features weighted with them."""
    features, weights = features.double(), torch.tensor(shares, dtype=torch.float64, device=features.device)
    count = features.new_tensor(features.shape[1])
    return [count, features.sum(dim=1), features.mT @ features, weights.sum(dim=1), weights @ features]


def add_up(sums: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [one + other for one, other in zip(sums, more, strict=True)]


def discriminants(
    mean: Float64[Tensor, "late_features dimensions"],
    covariance: Float64[Tensor, "late_features dimensions dimensions"],
    class_means: Float64[Tensor, "late_features classes dimensions"],
    logits: Float64[Tensor, " classes"],
) -> tuple[Float64[Tensor, "late_features classes dimensions"], Float64[Tensor, " classes"]]:
    """Rows and offsets of `schemas.embeddings.VisualQueries`.

    Args:
        mean, covariance: of all patches.
        class_means: the mean patch of each class, each patch weighted with the class's share of it.
        logits: of each class, between the mean patch and its own.
    """
    variance = covariance.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=LEAST_VARIANCE)
    sphere = variance[:, None, None] * torch.eye(mean.shape[1]).to(mean)
    apart = class_means - mean[:, None]
    rows = torch.linalg.solve(torch.lerp(covariance, sphere, SHRINKAGE), apart.mT).mT
    distance = (rows * apart).sum(dim=(0, 2))
    rows *= (logits / distance.clamp(min=LEAST_DISTANCE))[:, None]
    return rows, -(rows * mean[:, None]).sum(dim=(0, 2)) - DOUBT * logits
