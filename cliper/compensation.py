"""Fine-grained compensation: coarse maps sharpened by the self-attention of a diffusion model."""

from collections.abc import Sequence

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
                x = head_attention(query, key, settings) @ x
        case "mean":
            x = torch.stack([head_attention(query, key, settings) @ x for query, key in heads]).mean(dim=0)
        case "head":
            x = head_attention(*heads[settings.head], settings) @ x
    return x.T.unflatten(1, (side, side))


def head_attention(
    query: Float[Tensor, "positions head_width"], key: Float[Tensor, "positions head_width"], settings: MethodSettings
) -> Float[Tensor, "positions positions"]:
    """One head's attention, ready to multiply maps from the left."""
    return sharpen(attention_probabilities(query, key), settings)


def sharpen(
    attention: Float[Tensor, "positions positions"], settings: MethodSettings
) -> Float[Tensor, "positions positions"]:
    """Preset ``release``: columns relative to their maximum, weak entries dropped, rows sum to 1; ``paper``: as it is.

    Works in place on ``attention``, which must be the caller's own.
    """
    if settings.preset == "paper":
        return attention
    attention /= attention.amax(dim=-2, keepdim=True) + EPSILON
    attention[attention < settings.attention_threshold] = 0
    attention /= attention.sum(dim=-1, keepdim=True) + EPSILON
    return attention
