"""From labelled examples to visual queries: what a class looks like, as logits beside those of its words.

The direction of a class in the space of the features is that of Fisher's linear discriminant: the mean of its patches
less the mean of all, decorrelated by the covariance of all patches of the examples, shrunk towards a sphere. Used with
CLIP's image-level features, it is a strong way to adapt without training (Wang et al., "A Hard-to-Beat Baseline for
Training-free CLIP-based Adaptation", ICLR 2024). Here the scale is not a fitted one: between the mean patch and the
class's mean patch the logit grows by `EVIDENCE`. Values were chosen on photographs, see docs/beyond.md.
"""

from dataclasses import replace
from functools import reduce

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional as F

from cliper.examples import Example, Examples
from cliper.fusion import fuse
from cliper.loading import load_vision_tower
from cliper.models import ClipSpec, ModelError
from cliper.settings import MethodSettings
from cliper.specs import best_device
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
DOUBT = 0.1
"""Share of them that a patch must have before the class gains."""
LEAST_DISTANCE = 0.1
"""Squared Mahalanobis distance of a class from the mean patch below which its evidence fades: examples with nothing
but the class do not say what sets it apart."""


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
    return replace(embeddings, visual=visual_queries(tower, examples, settings, embeddings.wordless))


@torch.inference_mode()
def visual_queries(
    tower: VisionTower, examples: Examples, settings: MethodSettings, wordless: tuple[str, ...] = ()
) -> VisualQueries:
    """Visual queries of the examples' classes.

    Args:
        tower: in float32.
        wordless: classes whose examples have to stand in for words too.
    """
    sums = reduce(add_up, (moments(late_features(tower, of, settings), of) for of in examples.images))
    count, total, products, masses, of_classes = sums
    mean = total / count
    covariance = products / count - mean[:, :, None] * mean[:, None]
    rows, offsets = discriminants(mean, covariance, of_classes / masses[:, None])
    return VisualQueries(examples.names, rows.float().cpu().numpy(), offsets.float().cpu().numpy())


def late_features(
    tower: VisionTower, example: Example, settings: MethodSettings
) -> Float64[Tensor, "late_features patches dimensions"]:
    """The L2-normalised dense features of an example from which its looks are told."""
    pixels = tower.normalize(channels_first([example.clip], tower.device))
    dense = fuse(tower, pixels, settings).dense[:, 0]
    late = dense[-max(1, round(LATE * len(dense))) :]
    return F.normalize(late, dim=-1).double()


def moments(features: Float64[Tensor, "late_features patches dimensions"], example: Example) -> list[Tensor]:
    """Sums over an example's patches: their number, features and products of features, and of every class its shares
    and features."""
    shares = torch.from_numpy(example.shares).to(features)
    count = features.new_tensor(features.shape[1])
    return [count, features.sum(dim=1), features.mT @ features, shares.sum(dim=1), shares @ features]


def add_up(sums: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [one + other for one, other in zip(sums, more, strict=True)]


def discriminants(
    mean: Float64[Tensor, "late_features dimensions"],
    covariance: Float64[Tensor, "late_features dimensions dimensions"],
    class_means: Float64[Tensor, "late_features classes dimensions"],
) -> tuple[Float64[Tensor, "late_features classes dimensions"], Float64[Tensor, " classes"]]:
    """Rows and offsets of `schemas.embeddings.VisualQueries`.

    Args:
        mean, covariance: of all patches.
        class_means: the mean patch of each class, each patch weighted with the class's share of it.
    """
    sphere = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(mean.shape[1]).to(mean)
    apart = class_means - mean[:, None]
    rows = torch.linalg.solve(torch.lerp(covariance, sphere, SHRINKAGE), apart.mT).mT
    rows *= EVIDENCE / (rows * apart).sum(dim=(0, 2)).clamp(min=LEAST_DISTANCE)[:, None]
    return rows, -(rows * mean[:, None]).sum(dim=(0, 2)) - EVIDENCE * DOUBT
