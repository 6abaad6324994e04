"""Class scores and the label map at the picture's own size."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn import functional as F

from cliper.settings import MethodSettings

CHUNK_PIXELS = 2**22
"""Classes are resized together as long as their maps have no more pixels than this (16 MiB in float32)."""


def class_scores(
    coarse: Float[Tensor, "classes height width"], refined: Float[Tensor, "classes side_h side_w"]
) -> Float[Tensor, " classes"]:
    """Max-pooled image-level scores: the mean of both maps' maxima (paper table 2). At least 0, can exceed 2."""
    return (coarse.flatten(1).amax(dim=1) + refined.flatten(1).amax(dim=1)) / 2


def label_map(
    refined: Float[Tensor, "classes side_h side_w"],
    scores: Float[Tensor, " classes"],
    image_hw: tuple[int, int],
    settings: MethodSettings,
    allowed: Collection[int] | None = None,
) -> Int32[Tensor, "height width"]:
    """The class of every pixel of the original picture: 0 is background, c + 1 is class c.

    Background is where no class reaches ``background_threshold`` (or its own threshold, where classes have some); if
    that is 0, where the square of (1 - the winning value) is at least the winning value.

    Args:
        refined: class maps.
        scores: as from `class_scores`; on the CPU, so that nothing waits for a GPU.
        image_hw: height and width of the original picture.
        settings: thresholds and ``normalize_maps``.
        allowed: classes (from 0) that may win, where image-level labels are given (paper table 3); None allows all.
    """
    floors = thresholds(settings.class_background_thresholds, settings.background_threshold, len(scores))
    value, labels = winning_classes(refined, scores, image_hw, settings, floors, allowed)
    if not floors.any():
        labels.masked_fill_((1 - value) ** 2 >= value, 0)
    return labels


def winning_classes(
    refined: Float[Tensor, "classes side_h side_w"],
    scores: Float[Tensor, " classes"],
    image_hw: tuple[int, int],
    settings: MethodSettings,
    floors: Float[Tensor, " classes"],
    allowed: Collection[int] | None = None,
) -> tuple[Float[Tensor, "height width"], Int32[Tensor, "height width"]]:
    """The largest value of a class at every pixel, and whose it is: c + 1 for class c, 0 where all are 0.

    A class competes with its map, resized bilinearly, relative to the map's maximum and times its score; classes whose
    score is not above ``score_threshold`` do not compete, nor does a class where its map is below its floor.

    Args:
        refined, scores, image_hw, settings, allowed: as for `label_map`.
        floors: on the scale of the values, at least 0; on the CPU.
    """
    best = torch.zeros(image_hw, device=refined.device)
    labels = torch.zeros(image_hw, dtype=torch.int32, device=refined.device)
    limits = thresholds(settings.class_score_thresholds, settings.score_threshold, len(scores))
    present = [index for index in (scores > limits).nonzero().flatten().tolist() if allowed is None or index in allowed]
    at_once = max(1, CHUNK_PIXELS // best.numel())
    for start in range(0, len(present), at_once):
        some = present[start : start + at_once]
        maps = F.interpolate(refined[None, some], image_hw, mode="bilinear", align_corners=False)[0]
        maps /= maps.amax(dim=(1, 2), keepdim=True) + 1e-5
        maps *= scores[some].to(maps)[:, None, None]
        if settings.normalize_maps:
            maps -= maps.amin(dim=(1, 2), keepdim=True)
            maps /= maps.amax(dim=(1, 2), keepdim=True) + 1e-6
        maps.masked_fill_(maps < floors[some].to(maps)[:, None, None], 0)
        value, place = maps.max(dim=0)
        wins = value > best
        best = torch.where(wins, value, best)
        classes = torch.tensor(some, dtype=torch.int32, device=labels.device) + 1
        labels = torch.where(wins, classes[place], labels)
    return best, labels


def thresholds(of_classes: Sequence[float], common: float, classes: int) -> Float[Tensor, " classes"]:
    """One threshold per class: its own where classes have some, else the common one."""
    return torch.tensor(of_classes or [common] * classes, dtype=torch.float32)
