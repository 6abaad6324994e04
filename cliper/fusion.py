"""Early-layer fusion: the last block's attention is replaced, every early feature goes through it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cliper.settings import MethodSettings
from cliper.towers import Block, Rotation
from cliper.vision import (
    VisionTower,
    VisualTrace,
    attention_probabilities,
    merge_heads,
    split_heads,
    trace,
)
from cliper.windows import Windows

SMALLEST = torch.finfo(torch.float32).tiny
STITCHED_STRIDE = 0.5
"""Distance between neighbouring windows that are stitched, as a share of their side."""


@dataclass(frozen=True)
class FusedFeatures:
    """Dense features in the space of the text embeddings.

    Attributes:
        dense: of every kept feature; class and register tokens are dropped.
        attention: the attention that the last kept feature went through, mean over heads, without the rows and columns
            of class and register tokens. Rows need not sum to 1.
        selected: index into ``dense`` of the feature at ``select_layer``.
    """

    dense: Float[Tensor, "features batch patches dimensions"]
    attention: Float[Tensor, "batch patches patches"]
    selected: int


class EarlyAttention:
    """The sum of the early attention maps S, normalised again and again: columns scaled to sum to 1, then rows.

    However many rounds there were, the matrix is ``diag(rows) S diag(columns)``: a round costs two products of S with a
    vector (as in Sinkhorn's algorithm), and S itself is never written to.

    Args:
        total: S; entries above 0.
    """

    def __init__(self, total: Float[Tensor, "batch heads tokens tokens"]) -> None:
        self.total = total
        self.rows = total.new_ones(*total.shape[:-1], 1)
        self.column_sums = total.sum(dim=-2, keepdim=True)
        """Of ``diag(rows) S``."""

    def next_round(self) -> None:
        """Normalise once more."""
        self.columns = 1 / self.column_sums
        self.rows = 1 / (self.total @ self.columns.transpose(-1, -2))
        self.column_sums = self.rows.transpose(-1, -2) @ self.total

    def symmetric(self) -> Float[Tensor, "batch heads tokens tokens"]:
        """After at least one round: made symmetric, each column centred, negative entries dropped; rows not yet scaled.

        Rows sum to 1 before, so column j of the symmetric matrix has the mean (its own sum + 1) / (2 tokens).
        """
        halved = self.total * (self.rows / 2)
        halved *= self.columns
        means = (self.columns * self.column_sums + 1) / (2 * self.total.shape[-1])
        return (halved + halved.transpose(-1, -2)).sub_(means).clamp_(min=0)


def fuse(
    tower: VisionTower, pixels: Float[Tensor, "batch 3 input_height input_width"], settings: MethodSettings
) -> FusedFeatures:
    """Trace normalised pixels (`cliper.vision.trace`) and send the features through the last block with its attention
    replaced (CLIPer equations 5 to 8, table 6).

    For feature k the output is ``ln_post(out_proj(P_k v_k)) @ projection`` with neither residual nor MLP, where ``v_k``
    is the value projection of the last block's ``ln_1`` of the feature, and ``P_k`` the replaced attention. What stands
    for these parts in other towers than CLIP's is in `cliper.towers`.
    Without early-layer embeddings only the feature at ``select_layer`` is kept; the number of normalisation rounds
    that its attention went through still follows from its index.
    """
    windows = None
    if settings.windows == "stitched":
        size_hw = (pixels.shape[2], pixels.shape[3])
        windows = Windows.over(size_hw, settings.window_px, stitched_stride_px(tower, settings), tower.patch_size_px)
    traced = trace(tower, pixels, settings.preset, keep_attention=settings.attention == "early-layer", windows=windows)
    last = tower.blocks[-1]
    selected = settings.select_layer % len(traced.features)
    if tower.kernels and windows is None and traced.attention_sum is not None and settings.preset != "paper":
        return fuse_with_kernels(tower, traced, settings)
    early = EarlyAttention(traced.attention_sum) if traced.attention_sum is not None else None
    dense = []
    attention = None
    for k, feature in enumerate(traced.features):
        if early is not None and settings.preset != "paper":
            early.next_round()
        if not settings.early_embeddings and k != selected:
            continue
        x = last.before_attention(feature)
        attention = replaced_attention(settings, last, x, traced.rotation, early, blocks=len(tower.blocks))
        mixed = merge_heads(attention.to(x.dtype) @ split_heads(last.attention.value(x), last.heads))
        dense.append(project_dense(tower, mixed))
    assert attention is not None, "select_layer was checked against the encoder"
    first = tower.prefix_tokens
    between = attention.mean(dim=1)[:, first:, first:]
    return FusedFeatures(torch.stack(dense), between, selected if len(dense) > 1 else 0)


def stitched_stride_px(tower: VisionTower, settings: MethodSettings) -> int:
    """Distance between neighbouring windows that are stitched: `STITCHED_STRIDE` of a side, in whole patches."""
    return max(1, round(STITCHED_STRIDE * settings.window_px / tower.patch_size_px)) * tower.patch_size_px


def fuse_with_kernels(tower: VisionTower, traced: VisualTrace, settings: MethodSettings) -> FusedFeatures:
    """`fuse` for early-layer attention in the presets that normalise it again and again: all features at once."""
    assert traced.attention_sum is not None, "early-layer attention needs a trace with attention maps"
    from cliper import attention_kernels  # Triton is only there where torch knows CUDA

    last, rounds = tower.blocks[-1], len(traced.features)
    selected = settings.select_layer % rounds
    first, end = (0, rounds) if settings.early_embeddings else (selected, selected + 1)
    rows, sums = attention_kernels.scaling_rounds(traced.attention_sum, end)
    value = last.attention.value(last.before_attention(torch.stack(traced.features[first:end])))
    mixed, attention = attention_kernels.symmetric_products(traced.attention_sum, rows[first:], sums[first:], value)
    prefix = tower.prefix_tokens
    return FusedFeatures(project_dense(tower, mixed), attention[:, prefix:, prefix:], selected - first)


def project_dense(
    tower: VisionTower, mixed: Float[Tensor, "*batch tokens width"]
) -> Float[Tensor, "*batch patches dimensions"]:
    """From values after attention to the space of the text embeddings, in float32 and without prefix tokens."""
    return tower.parts.project(tower.blocks[-1].project(mixed))[..., tower.prefix_tokens :, :].float()


def replaced_attention(
    settings: MethodSettings,
    last: Block,
    x: Float[Tensor, "batch tokens width"],
    rotation: Rotation,
    early: EarlyAttention | None,
    blocks: int,
) -> Float[Tensor, "batch heads tokens tokens"]:
    """The attention that stands in for the last block's own, in float32 (rows of paper table 6)."""
    if settings.attention == "early-layer":
        assert early is not None, "early-layer attention needs a trace with attention maps"
        return scale_rows(early.symmetric()) if settings.preset != "paper" else early.total / blocks
    if settings.attention == "identity":
        batch, tokens, _ = x.shape
        return torch.eye(tokens, device=x.device).expand(batch, last.heads, -1, -1)
    parts = dict(zip(("query", "key", "value"), last.attention.qkv(x, rotation), strict=True))
    left, right = settings.attention.split("-")
    return attention_probabilities(parts[left], parts[right])


def scale_rows(attention: Float[Tensor, "batch heads tokens tokens"]) -> Float[Tensor, "batch heads tokens tokens"]:
    """Rows scaled in place to sum to 1. A row of zeros stays (the official release divides by zero there)."""
    return attention.div_(attention.sum(dim=-1, keepdim=True).clamp(min=SMALLEST))
