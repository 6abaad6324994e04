"""Triton kernels for the attention that the method computes itself: early-layer fusion and compensation.

They read queries, keys and sums of attention maps once and keep no attention map of their own. Sums are in float32.
Each has a plain version, which is its definition, in `cliper.fusion.EarlyAttention` or `cliper.compensation.spread`.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliper import compensation, fusion

LOG2_E = tl.constexpr(math.log2(math.e))
TINY = tl.constexpr(fusion.SMALLEST)
EPSILON = tl.constexpr(compensation.EPSILON)
TILE = 64
MANY_WARPS = 8
"""For the kernels that would need more registers than there are with 4."""
CLASSES = 32
"""Class maps that a program of `spread_kernel` works on."""


@triton.jit
def load_tile(start, rows, row_stride, row_count, columns, column_stride, column_count):
    """A tile of a matrix; 0 outside of it."""
    inside = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    return tl.load(start + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0.0)


@triton.jit
def symmetric_tile(start, row_scales, column_scales, means, rows, columns, tokens):
    """A tile of a round's attention: scaled, symmetric, centred and clamped; its rows are not scaled again."""
    mask, inside = rows < tokens, columns < tokens
    there = load_tile(start, rows, tokens, tokens, columns, 1, tokens).to(tl.float32)
    back = load_tile(start, rows, 1, tokens, columns, tokens, tokens).to(tl.float32)
    there *= tl.load(row_scales + rows, mask=mask, other=0.0)[:, None]
    there *= tl.load(column_scales + columns, mask=inside, other=0.0)[None, :]
    back *= tl.load(row_scales + columns, mask=inside, other=0.0)[None, :]
    back *= tl.load(column_scales + rows, mask=mask, other=0.0)[:, None]
    centred = (there + back) / 2 - tl.load(means + columns, mask=inside, other=0.0)[None, :]
    return tl.where(mask[:, None] & inside[None, :], tl.maximum(centred, 0.0), 0.0)


@triton.jit
def early_sum_kernel(
    qkv, lse, total, layers, tokens, heads, layer_stride, batch_stride, token_stride, scale,
    width: tl.constexpr, padded: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """One tile of the sum over layers of ``softmax(scale q k^T)``, from packed rows of queries, keys and values."""
    pair = tl.program_id(2)
    rows, columns = tl.program_id(0) * tile + tl.arange(0, tile), tl.program_id(1) * tile + tl.arange(0, tile)
    entries = tl.arange(0, padded)
    of_layer = qkv + (pair // heads) * batch_stride + (pair % heads) * width
    sums = tl.zeros((tile, tile), tl.float32)
    for layer in range(layers):
        query = load_tile(of_layer, rows, token_stride, tokens, entries, 1, width)
        key = load_tile(of_layer + heads * width, entries, 1, width, columns, token_stride, tokens)
        place = (layer * tl.num_programs(2) + pair) * tokens
        normaliser = tl.load(lse + place + rows, mask=rows < tokens, other=0.0)
        logits = tl.dot(query, key, input_precision="ieee") * (scale * LOG2_E) - (normaliser * LOG2_E)[:, None]
        sums += tl.exp2(logits)
        of_layer += layer_stride
    target = total + pair.to(tl.int64) * tokens * tokens + rows[:, None] * tokens + columns[None, :]
    tl.store(target, sums.to(total.dtype.element_ty), mask=(rows < tokens)[:, None] & (columns < tokens)[None, :])


@triton.jit
def scaling_round_kernel(
    total, parts_before, parts, rows_out, sums_out, tokens, parts_count, first_round: tl.constexpr, tile: tl.constexpr
):
    """One round of scaling for a tile of rows: their new scales, and their part of every column's sum after them.

    The column sums before the round are themselves sums of parts, one for each tile, always added in the same order.
    The first round has none before it, and rows count as they are.
    """
    part, pair, pairs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    rows = part * tile + tl.arange(0, tile)
    mask = rows < tokens
    start = total + pair.to(tl.int64) * tokens * tokens
    row_scales = tl.full((tile,), 1.0, tl.float32)
    if not first_round:
        sums = tl.zeros((tile,), tl.float32)
        for first in range(0, tokens, tile):
            columns = first + tl.arange(0, tile)
            inside = columns < tokens
            column_sums = tl.zeros((tile,), tl.float32)
            for other in range(parts_count):
                column_sums += tl.load(parts_before + (other * pairs + pair) * tokens + columns, mask=inside, other=0.0)
            if part == 0:
                tl.store(sums_out + pair * tokens + columns, column_sums, mask=inside)
            values = load_tile(start, rows, tokens, tokens, columns, 1, tokens)
            # A column that half precision made all zeros gives nothing, whatever its scale.
            sums += tl.sum(values.to(tl.float32) / tl.maximum(column_sums, TINY)[None, :], axis=1)
        row_scales = 1.0 / tl.maximum(sums, TINY)
        tl.store(rows_out + pair * tokens + rows, row_scales, mask=mask)
    for first in range(0, tokens, tile):
        columns = first + tl.arange(0, tile)
        inside = columns < tokens
        values = load_tile(start, rows, tokens, tokens, columns, 1, tokens)  # just read: it comes from the cache
        own = tl.sum(values.to(tl.float32) * row_scales[:, None], axis=0)
        tl.store(parts + (part * pairs + pair) * tokens + columns, own, mask=inside)


@triton.jit
def symmetric_product_kernel(
    total, row_scales, column_scales, means, value, mixed, sums_out, tokens, heads,
    width: tl.constexpr, padded: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """A tile of rows of the product of a round's values with the attention that is symmetric, centred, clamped and
    row-scaled."""
    pair, pairs = tl.program_id(1), tl.num_programs(1)
    before = tl.program_id(2) * pairs  # pairs of image and head of earlier rounds
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    mask, entries = rows < tokens, tl.arange(0, padded)
    start, vectors = total + pair.to(tl.int64) * tokens * tokens, (before + pair) * tokens
    at_heads = before.to(tl.int64) * tokens * width + (pair // heads) * tokens * heads * width + (pair % heads) * width
    product, sums = tl.zeros((tile, padded), tl.float32), tl.zeros((tile,), tl.float32)
    for first in range(0, tokens, tile):
        columns = first + tl.arange(0, tile)
        weights = symmetric_tile(
            start, row_scales + vectors, column_scales + vectors, means + vectors, rows, columns, tokens
        )
        weights *= tokens  # they are about 1 then, where half precision is finest
        values = load_tile(value + at_heads, columns, heads * width, tokens, entries, 1, width)
        product = tl.dot(weights.to(values.dtype), values, product, input_precision="ieee")
        sums += tl.sum(weights, axis=1)
    tl.store(sums_out + vectors + rows, sums / tokens, mask=mask)
    result = product / tl.maximum(sums, TINY)[:, None]
    target = mixed + at_heads + rows[:, None] * heads * width + entries[None, :]
    tl.store(target, result.to(mixed.dtype.element_ty), mask=mask[:, None] & (entries < width)[None, :])


@triton.jit
def mean_attention_kernel(
    total, row_scales, column_scales, means, row_sums, mean_out, tokens, heads, tile: tl.constexpr
):
    """A tile of the mean over heads of a round's attention, symmetric, centred, clamped and row-scaled."""
    image = tl.program_id(2)
    rows, columns = tl.program_id(0) * tile + tl.arange(0, tile), tl.program_id(1) * tile + tl.arange(0, tile)
    summed = tl.zeros((tile, tile), tl.float32)
    for head in range(heads):
        pair = image * heads + head
        start, vectors = total + pair.to(tl.int64) * tokens * tokens, pair * tokens
        weights = symmetric_tile(
            start, row_scales + vectors, column_scales + vectors, means + vectors, rows, columns, tokens
        )
        own_sums = tl.load(row_sums + vectors + rows, mask=rows < tokens, other=1.0)
        summed += weights / tl.maximum(own_sums, TINY)[:, None]
    target = mean_out + image.to(tl.int64) * tokens * tokens + rows[:, None] * tokens + columns[None, :]
    tl.store(target, summed / heads, mask=(rows < tokens)[:, None] & (columns < tokens)[None, :])


@triton.jit
def row_normaliser_kernel(
    query, key, lse, positions, heads, batch_stride, head_stride, position_stride, scale,
    width: tl.constexpr, padded: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Base-2 logarithm of the sums of ``exp(scale q k^T)`` over keys, for a tile of queries."""
    pair = tl.program_id(1)
    start = (pair // heads) * batch_stride + (pair % heads) * head_stride
    rows, entries = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, padded)
    mask = rows < positions
    queries = load_tile(query + start, rows, position_stride, positions, entries, 1, width)
    highest, sums = tl.full((tile,), -float("inf"), tl.float32), tl.zeros((tile,), tl.float32)
    for first in range(0, positions, tile):
        columns = first + tl.arange(0, tile)
        inside = columns < positions
        keys = load_tile(key + start, entries, 1, width, columns, position_stride, positions)
        logits = tl.dot(queries, keys, input_precision="ieee") * (scale * LOG2_E)
        logits = tl.where(inside[None, :], logits, -float("inf"))
        highest_now = tl.maximum(highest, tl.max(logits, axis=1))
        sums = sums * tl.exp2(highest - highest_now) + tl.sum(tl.exp2(logits - highest_now[:, None]), axis=1)
        highest = highest_now
    tl.store(lse + pair * positions + rows, highest + tl.log2(sums), mask=mask)


@triton.jit
def column_peaks_kernel(
    query, key, lse, peaks, positions, heads, batch_stride, head_stride, position_stride, scale,
    width: tl.constexpr, padded: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Base-2 logarithm of the greatest attention that a tile of keys gets from any query."""
    pair = tl.program_id(1)
    start = (pair // heads) * batch_stride + (pair % heads) * head_stride
    columns, entries = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, padded)
    mask = columns < positions
    keys = load_tile(key + start, entries, 1, width, columns, position_stride, positions)
    highest = tl.full((tile,), -float("inf"), tl.float32)
    for first in range(0, positions, tile):
        rows = first + tl.arange(0, tile)
        inside = rows < positions
        queries = load_tile(query + start, rows, position_stride, positions, entries, 1, width)
        normaliser = tl.load(lse + pair * positions + rows, mask=inside, other=float("inf"))
        logits = tl.dot(queries, keys, input_precision="ieee") * (scale * LOG2_E) - normaliser[:, None]
        highest = tl.maximum(highest, tl.max(logits, axis=0))
    tl.store(peaks + pair * positions + columns, highest, mask=mask)


@triton.jit
def spread_kernel(
    query, key, lse, peaks, maps, spread_out, positions, heads, head, batch_stride, head_stride, position_stride,
    classes, scale, threshold, relative: tl.constexpr,
    width: tl.constexpr, padded: tl.constexpr, tile: tl.constexpr, class_tile: tl.constexpr,
):  # fmt: skip
    """A tile of positions of some class maps after the attention of one head; see `cliper.compensation.spread`."""
    image = tl.program_id(1)
    start, vectors = image * batch_stride + head * head_stride, (image * heads + head) * positions
    rows, entries = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, padded)
    chosen = tl.program_id(2) * class_tile + tl.arange(0, class_tile)
    mask, of_classes = rows < positions, chosen < classes
    queries = load_tile(query + start, rows, position_stride, positions, entries, 1, width)
    normaliser = tl.load(lse + vectors + rows, mask=mask, other=float("inf"))
    at_maps = image * positions * classes
    product, sums = tl.zeros((tile, class_tile), tl.float32), tl.zeros((tile,), tl.float32)
    for first in range(0, positions, tile):
        columns = first + tl.arange(0, tile)
        inside = columns < positions
        keys = load_tile(key + start, entries, 1, width, columns, position_stride, positions)
        weights = tl.exp2(tl.dot(queries, keys, input_precision="ieee") * (scale * LOG2_E) - normaliser[:, None])
        if relative:
            peak = tl.exp2(tl.load(peaks + vectors + columns, mask=inside, other=0.0)) + EPSILON
            weights = weights / peak[None, :]
            weights = tl.where(weights >= threshold, weights, 0.0)
        weights = tl.where(inside[None, :], weights, 0.0)
        values = load_tile(maps + at_maps, columns, classes, positions, chosen, 1, classes)
        product = tl.dot(weights, values, product, input_precision="tf32x3")
        sums += tl.sum(weights, axis=1)
    if relative:
        product = product / (sums + EPSILON)[:, None]
    target = spread_out + at_maps + rows[:, None] * classes + chosen[None, :]
    tl.store(target, product, mask=mask[:, None] & of_classes[None, :])


def format_of_sums(of_maps: torch.dtype) -> torch.dtype:
    """In bf16 the sum of early maps would be too coarse: neighbouring values differ by up to 1 %."""
    return torch.float32 if of_maps == torch.float32 else torch.float16


@torch.library.custom_op("cliper::early_sum", mutates_args=())
def early_sum(qkv: Tensor, lse: Tensor) -> Tensor:
    """The sum over layers of ``softmax(q k^T / sqrt(d))``, in the format of queries and keys.

    Args:
        qkv: queries, keys and values of all heads, side by side [layers, batch, tokens, 3 x heads x width]; contiguous.
        lse: natural logarithm of the sums of the exponentials over keys, float32 [layers, batch, heads, tokens].

    Returns:
        [batch, heads, tokens, tokens].
    """
    layers, batch, tokens, packed = qkv.shape
    heads = lse.shape[2]
    width = packed // (3 * heads)
    total = qkv.new_empty(batch, heads, tokens, tokens, dtype=format_of_sums(qkv.dtype))
    grid = (triton.cdiv(tokens, TILE), triton.cdiv(tokens, TILE), batch * heads)
    early_sum_kernel[grid](
        qkv, lse, total, layers, tokens, heads, *qkv.stride()[:3], width**-0.5,
        width=width, padded=padded_width(width), tile=TILE, num_warps=MANY_WARPS,
    )  # fmt: skip
    return total


@torch.library.custom_op("cliper::scaling_rounds", mutates_args=())
def scaling_rounds(total: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """What `cliper.fusion.EarlyAttention.next_round` computes, round after round.

    Args:
        total: the sum of the early maps [batch, heads, tokens, tokens].
        rounds: how many.

    Returns:
        The rows' scales after every round, float32 [rounds, batch, heads, tokens], and the column sums before the first
        and after every round, [rounds + 1, batch, heads, tokens].
    """
    batch, heads, tokens, _ = total.shape
    rows = total.new_empty(rounds, batch, heads, tokens, dtype=torch.float32)
    sums = total.new_empty(rounds + 1, batch, heads, tokens, dtype=torch.float32)
    tiles = triton.cdiv(tokens, TILE)
    before, parts = total.new_empty(2, tiles, batch, heads, tokens, dtype=torch.float32)
    for index in range(rounds + 1):
        scaling_round_kernel[(tiles, batch * heads)](
            total, before, parts, rows[index - 1], sums[index - 1], tokens, tiles, first_round=index == 0, tile=TILE
        )
        before, parts = parts, before
    torch.sum(before, dim=0, out=sums[rounds])
    return rows, sums


@torch.library.custom_op("cliper::symmetric_products", mutates_args=())
def symmetric_products(total: Tensor, rows: Tensor, sums: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Values of all heads after `cliper.fusion.EarlyAttention.symmetric` with scaled rows, each in its own round.

    Args:
        total: the sum of the early maps [batch, heads, tokens, tokens].
        rows, sums: of the rounds, from `scaling_rounds`.
        value: heads side by side [rounds, batch, tokens, heads x width]; contiguous.

    Returns:
        Mixed values, as ``value``, and the mean over heads of the last round's attention, float32
        [batch, tokens, tokens].
    """
    batch, heads, tokens, _ = total.shape
    rounds, packed = len(value), value.shape[3]
    columns = 1 / sums[:-1].clamp(min=fusion.SMALLEST)
    means = (columns * sums[1:] + 1) / (2 * tokens)
    mixed, row_sums, width = torch.empty_like(value), torch.empty_like(rows), packed // heads
    tiles = triton.cdiv(tokens, TILE)
    symmetric_product_kernel[(tiles, batch * heads, rounds)](
        total, rows, columns, means, value, mixed, row_sums, tokens, heads,
        width=width, padded=padded_width(width), tile=TILE,
    )  # fmt: skip
    mean = total.new_empty(batch, tokens, tokens, dtype=torch.float32)
    mean_attention_kernel[(tiles, tiles, batch)](
        total, rows[-1], columns[-1], means[-1], row_sums[-1], mean, tokens, heads, tile=TILE, num_warps=MANY_WARPS
    )  # fmt: skip
    return mixed, mean


@torch.library.custom_op("cliper::spread_heads", mutates_args=())
def spread_heads(maps: Tensor, query: Tensor, key: Tensor, threshold: float | None) -> Tensor:
    """Class maps after the attention of a layer's heads, from the last to the first (equations 9 and 10).

    Args:
        maps: class maps, float32 [batch, positions, classes]; contiguous.
        query, key: [batch, heads, positions, width]; the width has stride 1, and both have the same strides.
        threshold: of weak entries relative to their column's maximum; None for the attention as it is (preset
            ``paper``).
    """
    batch, positions, classes = maps.shape
    heads, width = query.shape[1], query.shape[3]
    lse = query.new_empty(batch, heads, positions, dtype=torch.float32)
    peaks = torch.empty_like(lse)
    sizes = {"width": width, "padded": padded_width(width), "tile": TILE}
    strides, scale = query.stride()[:3], width**-0.5
    grid = (triton.cdiv(positions, TILE), batch * heads)
    row_normaliser_kernel[grid](query, key, lse, positions, heads, *strides, scale, **sizes)
    if threshold is not None:
        column_peaks_kernel[grid](query, key, lse, peaks, positions, heads, *strides, scale, **sizes)
    for head in reversed(range(heads)):
        after = torch.empty_like(maps)
        spread_kernel[(triton.cdiv(positions, TILE), batch, triton.cdiv(classes, CLASSES))](
            query, key, lse, peaks, maps, after, positions, heads, head, *strides, classes, scale, threshold or 0.0,
            relative=threshold is not None, class_tile=CLASSES, num_warps=MANY_WARPS, **sizes,
        )  # fmt: skip
        maps = after
    return maps


@early_sum.register_fake
def _(qkv: Tensor, lse: Tensor) -> Tensor:
    _, batch, heads, tokens = lse.shape
    return qkv.new_empty(batch, heads, tokens, tokens, dtype=format_of_sums(qkv.dtype))


@scaling_rounds.register_fake
def _(total: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    sizes = total.shape[:3]
    kind = torch.float32
    return total.new_empty(rounds, *sizes, dtype=kind), total.new_empty(rounds + 1, *sizes, dtype=kind)


@symmetric_products.register_fake
def _(total: Tensor, rows: Tensor, sums: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, _, tokens, _ = total.shape
    return torch.empty_like(value), total.new_empty(batch, tokens, tokens, dtype=torch.float32)


@spread_heads.register_fake
def _(maps: Tensor, query: Tensor, key: Tensor, threshold: float | None) -> Tensor:
    return torch.empty_like(maps)


def padded_width(width: int) -> int:
    """The next power of two, at least 16, as products in Triton need it."""
    return max(16, 2 ** math.ceil(math.log2(width)))
