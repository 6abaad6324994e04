"""The label map written down plainly: every class's map at the image's own size, one whole map after the other."""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from cliper.settings import MethodSettings


def plain_label_map(
    refined: Tensor,
    scores: Tensor,
    image_hw: tuple[int, int],
    settings: MethodSettings,
    allowed: Collection[int] | None = None,
) -> Tensor:
    """What `cliper.labels.label_map` must return, to the last pixel; for settings without thresholds per class."""
    best, labels = torch.zeros(image_hw), torch.zeros(image_hw, dtype=torch.int32)
    for index, (single, score) in enumerate(zip(refined, scores, strict=True)):
        if score <= settings.score_threshold or (allowed is not None and index not in allowed):
            continue
        value = F.interpolate(single[None, None], image_hw, mode="bilinear", align_corners=False)[0, 0]
        value = value / (value.max() + 1e-5) * score
        if settings.normalize_maps:
            value = value - value.min()
            value = value / (value.max() + 1e-6)
        value[value < settings.background_threshold] = 0
        wins = value > best
        best, labels = torch.where(wins, value, best), labels.masked_fill(wins, index + 1)
    if settings.background_threshold == 0:
        labels[(1 - best) ** 2 >= best] = 0
    return labels
