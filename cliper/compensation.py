"""Fine-grained compensation: coarse maps sharpened by self-attention (`cliper.affinity`), or by the image alone."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from cliper.groups import Groups
from cliper.settings import MethodSettings

EPSILON = 1e-5
CPU_ROWS = 256
"""Rows of an attention map that are worked on together on a CPU, so that they stay in its cache."""
GUIDE_SIDE_PX = 168
"""Shorter side of the guided filter's image and maps."""
GUIDE_RADIUS_PX = 8
GUIDE_EPSILON = 1e-3
"""Variance of colours, from 0 to 1, below which the filter only smooths."""
GUIDE_SUBSAMPLE = 4
"""The filter's coefficients are computed at a quarter of the side (He and Sun 2015): as good, 16 times faster."""

WIDEST_IN_KERNELS = 128
"""Wider heads, as SAM's with its relative positions, do not fit the kernels' memory on the chip."""

LayerQueriesAndKeys = tuple[
    Float[Tensor, "batch heads positions head_width"], Float[Tensor, "batch heads positions head_width"]
]
HeadQueriesAndKeys = Sequence[
    tuple[Float[Tensor, "layer_heads positions layer_width"], Float[Tensor, "layer_heads positions layer_width"]]
]
"""Queries and keys of one image's attention layers; their heads, layer after layer, are the heads of the method."""


def refine(
    coarse: Float[Tensor, "classes height width"],
    layers: HeadQueriesAndKeys,
    grid_hw: tuple[int, int],
    settings: MethodSettings,
) -> Float[Tensor, "classes grid_h grid_w"]:
    """Multiply the class maps by attention (CLIPer equations 9 and 10; table 7).

    With heads 0 to n-1 the result is ``A_0 A_1 ... A_{n-1} X`` for the class maps X resized to the attention's
    positions. Products associate, so it is computed from the right: n products of a map of attention with
    the class maps, with one head's map in memory at a time.

    Args:
        coarse: coarse maps of one image on the patch grid.
        layers: queries and keys.
        grid_hw: their positions are the cells of this grid, row after row.
        settings: ``compensation`` is not ``none``.
    """
    heads = [(q, k) for queries, keys in layers for q, k in zip(queries, keys, strict=True)]
    maps = F.interpolate(coarse[None], grid_hw, mode="bilinear", align_corners=False)[0].flatten(1)
    scratch = heads[0][0].new_empty(maps.shape[1], maps.shape[1])
    match settings.compensation:
        case "product":
            for query, key in reversed(heads):
                maps = spread(query, key, maps, settings, scratch)
        case "mean":
            maps = torch.stack([spread(query, key, maps, settings, scratch) for query, key in heads]).mean(dim=0)
        case "head":
            maps = spread(*heads[settings.head], maps, settings, scratch)
    return maps.float().unflatten(1, grid_hw)


def refine_together(
    coarse: Groups, layers: Sequence[LayerQueriesAndKeys], grid_hw: tuple[int, int], settings: MethodSettings
) -> Float[Tensor, "images classes grid_h grid_w"]:
    """`refine` with kernels, for all images of a batch at once.

    Logits, maxima and thresholds are in float32. `refine` rounds logits to the queries' format, so entries near the
    threshold can fall on its other side.

    Args:
        coarse: coarse maps [classes, height, width] of each image on its patch grid.
        layers: queries and keys of all images.
        grid_hw, settings: as for `refine`.
    """
    from cliper import attention_kernels  # Triton is only there where torch knows CUDA

    resized = coarse.map(lambda of: F.interpolate(of, grid_hw, mode="bilinear", align_corners=False))
    maps = resized.stacked().flatten(2).transpose(1, 2).contiguous()
    threshold = None if settings.preset == "paper" else settings.attention_threshold
    match settings.compensation:
        case "product":
            for query, key in reversed(layers):
                maps = attention_kernels.spread_heads(maps, query, key, threshold)
        case "mean":
            found = [attention_kernels.spread_heads(maps, *head, threshold) for head in single_heads(layers)]
            maps = torch.stack(found).mean(dim=0)
        case "head":
            maps = attention_kernels.spread_heads(maps, *single_heads(layers)[settings.head], threshold)
    return maps.transpose(1, 2).unflatten(2, grid_hw)


def single_heads(
    layers: Sequence[LayerQueriesAndKeys],
) -> list[tuple[Float[Tensor, "batch 1 positions head_width"], Float[Tensor, "batch 1 positions head_width"]]]:
    """Each head as a layer of its own."""
    return [of for query, key in layers for of in zip(query.split(1, dim=1), key.split(1, dim=1), strict=True)]


def guided(
    coarse: Float[Tensor, "classes height width"], image: UInt8[Tensor, "1 3 input_height input_width"]
) -> Float[Tensor, "classes side_h side_w"]:
    """Sharpen class maps with the image's colours: guided filter (He et al. 2010), which takes milliseconds.

    Args:
        coarse: coarse maps of one image on the patch grid.
        image: CLIP's input before normalisation.
    """
    from kornia.filters import guided_blur  # takes half a second to import

    scale = GUIDE_SIDE_PX / min(image.shape[2:])
    side_hw = [round(length * scale) for length in image.shape[2:]]
    guide = F.interpolate(image.float() / 255, side_hw, mode="bilinear", antialias=True)
    maps = F.interpolate(coarse[None], side_hw, mode="bilinear", align_corners=False)
    return guided_blur(guide, maps, 2 * GUIDE_RADIUS_PX + 1, GUIDE_EPSILON, subsample=GUIDE_SUBSAMPLE)[0]


def spread(
    query: Float[Tensor, "positions head_width"],
    key: Float[Tensor, "positions head_width"],
    maps: Float[Tensor, "classes positions"],
    settings: MethodSettings,
    scratch: Float[Tensor, "positions positions"],
) -> Float[Tensor, "classes positions"]:
    """Multiply maps by one head's attention, in the queries' number format: column vectors A x, written as rows x A^T.

    Preset ``release``: the attention's columns are taken relative to their maximum, weak entries are dropped and rows
    scaled to sum to 1. The sums come out of the same product, from a row of ones below the maps. Preset ``paper``: the
    attention as it is.

    Args:
        scratch: holds the attention, which is computed and changed in place. Allocating it for every head would cost
            more than the product: on a CPU its pages would be returned and mapped again.
    """
    chunk_size = len(query) if query.is_cuda else CPU_ROWS
    attention = scratch.split(chunk_size)
    for rows, queries in zip(attention, (query * query.shape[-1] ** -0.5).split(chunk_size), strict=True):
        torch.softmax(queries @ key.T, dim=-1, out=rows)
    maps = maps.to(query.dtype)
    if settings.preset == "paper":
        return torch.cat([maps @ rows.T for rows in attention], dim=1)
    peaks = torch.stack([rows.amax(dim=0) for rows in attention]).amax(dim=0) + EPSILON
    below = np.nextafter(np.float32(settings.attention_threshold), np.float32(-1))
    with_ones = torch.cat([maps, maps.new_ones(1, len(query))])
    weighted = torch.empty_like(with_ones)
    for rows, part in zip(attention, weighted.split(chunk_size, dim=1), strict=True):
        rows /= peaks
        F.threshold(rows, float(below), 0.0, inplace=True)  # keeps entries above `below`, so the threshold itself stays
        part.copy_(with_ones @ rows.T)
    return weighted[:-1] / (weighted[-1:] + EPSILON)
