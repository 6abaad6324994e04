"""Fine-grained compensation: coarse maps sharpened by the self-attention of a diffusion model."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cliper.settings import MethodSettings
from cliper.vision import attention_probabilities

EPSILON = 1e-5

HeadQueriesAndKeys = Sequence[
    tuple[Float[Tensor, "layer_heads positions layer_width"], Float[Tensor, "layer_heads positions layer_width"]]
]
"""Queries and keys of one picture's attention layers; their heads, layer after layer, are the heads of the method."""


def refine(
    coarse: Float[Tensor, "classes height width"], layers: HeadQueriesAndKeys, settings: MethodSettings
) -> Float[Tensor, "classes side side"]:
    """Multiply the class maps by the diffusion model's attention (CLIPer equations 9 and 10; table 7).

    With heads 0 to n-1 the result is ``A_0 A_1 ... A_{n-1} X`` for the class maps X resized to the attention's
    positions. Products associate, so it is computed from the right: n products of [positions, positions] by
    [positions, classes], with one head's map in memory at a time.

    Args:
        coarse: coarse maps of one picture on the patch grid.
        layers: queries and keys whose positions form a square.
        settings: ``compensation`` is not ``none``.
    """
    heads = [(q, k) for queries, keys in layers for q, k in zip(queries, keys, strict=True)]
    side = round(heads[0][0].shape[0] ** 0.5)
    x = F.interpolate(coarse[None], (side, side), mode="bilinear", align_corners=False)[0].flatten(1).T
    match settings.compensation:
        case "product":
            for query, key in reversed(heads):
                x = spread(query, key, x, settings)
        case "mean":
            x = torch.stack([spread(query, key, x, settings) for query, key in heads]).mean(dim=0)
        case "head":
            x = spread(*heads[settings.head], x, settings)
    return x.T.unflatten(1, (side, side))


def spread(
    query: Float[Tensor, "positions head_width"],
    key: Float[Tensor, "positions head_width"],
    x: Float[Tensor, "positions classes"],
    settings: MethodSettings,
) -> Float[Tensor, "positions classes"]:
    """Multiply maps by one head's attention from the left.

    Preset ``release``: the attention's columns are taken relative to their maximum, weak entries are dropped and rows
    scaled to sum to 1. The sums come out of the same product, from a column of ones beside the maps, and the attention
    is changed in place, so that there is one [positions, positions] tensor. Preset ``paper``: the attention as it is.
    """
    attention = attention_probabilities(query, key)
    if settings.preset == "paper":
        return attention @ x
    attention /= attention.amax(dim=-2, keepdim=True) + EPSILON
    below = np.nextafter(np.float32(settings.attention_threshold), np.float32(-1))
    F.threshold(attention, float(below), 0.0, inplace=True)  # keeps what is above `below`: the threshold itself stays
    weighted = attention @ torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    return weighted[:, :-1] / (weighted[:, -1:] + EPSILON)
