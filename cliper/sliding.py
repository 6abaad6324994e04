"""Logits averaged over sliding windows, as the official release has them."""

import torch
from jaxtyping import Float
from torch import Tensor

from cliper.coarse import Queries, query_logits, visual_evidence
from cliper.fusion import fuse
from cliper.settings import SLIDING_STRIDE_PX, MethodSettings
from cliper.vision import VisionTower
from cliper.windows import Windows

EPSILON = 1e-5


def windowed_logits(
    tower: VisionTower, pixels: Float[Tensor, "3 input_height input_width"], queries: Queries, settings: MethodSettings
) -> list[Float[Tensor, "queries patches"]]:
    """Query logits of one image seen through windows, for every kept feature.

    Each window runs through the tower on its own. Logits are averaged where windows overlap; the windows' attention
    maps are averaged over the windows that hold both patches into one [patches, patches] matrix with rows summing
    to 1, and the logits are multiplied by it.
    """
    patch = tower.patch_size_px
    height, width = pixels.shape[-2:]
    windows = Windows.over((height, width), settings.window_px, SLIDING_STRIDE_PX, patch)
    crop_h, crop_w = windows.crop_hw
    indices = torch.arange((height // patch) * (width // patch), device=tower.device).view(height // patch, -1)

    patches = indices.numel()
    pairs = torch.zeros(patches, patches, device=tower.device)
    affinity = torch.zeros_like(pairs)
    seen = torch.zeros(patches, device=tower.device)
    totals: list[Tensor] = []
    for top, left in windows.corners:
        fused = fuse(tower, pixels[None, :, top : top + crop_h, left : left + crop_w], settings)
        inside = indices[top // patch : (top + crop_h) // patch, left // patch : (left + crop_w) // patch].flatten()
        logits = [query_logits(dense, queries, settings.logit_scale)[0] for dense in fused.dense]
        if (evidence := visual_evidence(fused.dense, queries)) is not None:
            logits = [single + evidence[0] for single in logits]
        if not totals:
            totals = [single.new_zeros(len(single), patches) for single in logits]
        for total, single in zip(totals, logits, strict=True):
            total[:, inside] += single
        seen[inside] += 1
        pairs[inside[:, None], inside] += 1
        affinity[inside[:, None], inside] += fused.attention[0]
    affinity = affinity / (pairs + EPSILON)
    affinity = affinity / affinity.sum(dim=-1, keepdim=True).clamp(min=EPSILON)
    return [total / seen @ affinity for total in totals]
