"""Triton kernels for labels and their runs.

They work on images of any sizes at once and keep no map of an image's size but the labels. Their plain versions, which
define what they compute, are `cliper.labels.label_map` and `cliper.runs.first_pixels`.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliper import labels as plain

EPSILON = tl.constexpr(plain.EPSILON)
SPAN_EPSILON = tl.constexpr(plain.SPAN_EPSILON)
PIXELS = 512
"""Pixels of an image that a program works on together."""
IMAGE_COLUMNS = tl.constexpr(8)
"""Of the table of images that `label_pixels` takes."""


@triton.jit
def resized_entries(map_start, side_h, side_w, rows, columns, height, width):
    """Some pixels of a map that is resized bilinearly (align_corners=False). Pixels outside of the image have some
    value."""
    upper, lower, down = neighbours(rows, side_h, height)
    left, right, across = neighbours(columns, side_w, width)
    above = (1 - across) * tl.load(map_start + upper * side_w + left)
    above += across * tl.load(map_start + upper * side_w + right)
    below = (1 - across) * tl.load(map_start + lower * side_w + left)
    below += across * tl.load(map_start + lower * side_w + right)
    return (1 - down) * above + down * below


@triton.jit
def neighbours(pixels, side, length):
    """The two map entries between which a pixel lies along an axis, and the weight of the second."""
    scale = tl.math.div_rn(side.to(tl.float32), length.to(tl.float32))
    source = tl.maximum((pixels + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(source.to(tl.int32), side - 1)
    return first, tl.minimum(first + 1, side - 1), source - first


@triton.jit
def outermost_pixels(index, side, length):
    """Pixels along an axis that lie next to a map entry: for each of the ``side`` entries one before and one after it.
    All further indices give the last pixel."""
    before = tl.maximum((2 * (index // 2) + 1) * length - side, 0) // (2 * side)
    return tl.minimum(before + index % 2, length - 1)


@triton.jit
def map_extremes_kernel(maps, images, numbers, highest, lowest, tile: tl.constexpr):
    """The largest and smallest entry of a competing class's map, resized to the image's size.

    Between four entries of a map the resized map is linear along each axis. So it is largest and smallest at pixels
    next to entries, however many pixels there are.
    """
    image = images + tl.program_id(0) * IMAGE_COLUMNS
    entry = tl.load(image + 5) + tl.program_id(1)
    if entry < tl.load(image + 6):
        side_h, side_w = tl.load(image + 1).to(tl.int32), tl.load(image + 2).to(tl.int32)
        height, width = tl.load(image + 3).to(tl.int32), tl.load(image + 4).to(tl.int32)
        map_start = maps + tl.load(image) + tl.load(numbers + entry) * (side_h * side_w)
        high, low = tl.full((tile,), -float("inf"), tl.float32), tl.full((tile,), float("inf"), tl.float32)
        for first in range(0, 4 * side_h * side_w, tile):
            points = first + tl.arange(0, tile)
            rows = outermost_pixels(points // (2 * side_w), side_h, height)
            columns = outermost_pixels(points % (2 * side_w), side_w, width)
            values = resized_entries(map_start, side_h, side_w, rows, columns, height, width)
            high, low = tl.maximum(high, values), tl.minimum(low, values)
        tl.store(highest + entry, tl.max(high, axis=0))
        tl.store(lowest + entry, tl.min(low, axis=0))


@triton.jit
def winning_labels_kernel(
    maps, images, numbers, scores, floors, highest, lowest, labels,
    normalize: tl.constexpr, has_thresholds: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The labels of some pixels of an image; see `cliper.labels.label_map`.

    To be compiled without fused products and sums: a map without contrast would no longer become 0 when it is
    normalised.
    """
    image = images + tl.program_id(1) * IMAGE_COLUMNS
    height, width = tl.load(image + 3).to(tl.int32), tl.load(image + 4).to(tl.int32)
    pixels = tl.program_id(0) * tile + tl.arange(0, tile)
    if tl.program_id(0) * tile < height * width:
        side_h, side_w = tl.load(image + 1).to(tl.int32), tl.load(image + 2).to(tl.int32)
        maps += tl.load(image)
        best, winner = tl.zeros((tile,), tl.float32), tl.zeros((tile,), tl.int32)
        for entry in range(tl.load(image + 5), tl.load(image + 6)):
            number, score, high = tl.load(numbers + entry), tl.load(scores + entry), tl.load(highest + entry)
            map_start = maps + number * (side_h * side_w)
            values = resized_entries(map_start, side_h, side_w, pixels // width, pixels % width, height, width)
            divisor = high + EPSILON
            values = tl.math.div_rn(values, tl.broadcast_to(divisor, (tile,))) * score
            if normalize:
                offset = tl.math.div_rn(tl.load(lowest + entry), divisor) * score
                span = tl.math.div_rn(high, divisor) * score - offset + SPAN_EPSILON
                values = tl.math.div_rn(values - offset, tl.broadcast_to(span, (tile,)))
            wins = (values >= tl.load(floors + entry)) & (values > best)
            best = tl.where(wins, values, best)
            winner = tl.where(wins, number.to(tl.int32) + 1, winner)
        if not has_thresholds:
            winner = tl.where((1 - best) * (1 - best) >= best, 0, winner)
        target = labels + tl.load(image + 7) + pixels
        tl.store(target, winner.to(labels.dtype.element_ty), mask=pixels < height * width)


@triton.jit
def first_pixels_kernel(labels, images, first_out, tile: tl.constexpr):
    """Whether runs begin at some pixels of an image; see `cliper.runs.first_pixels`."""
    image = images + tl.program_id(1) * IMAGE_COLUMNS
    height, width = tl.load(image + 3).to(tl.int32), tl.load(image + 4).to(tl.int32)
    pixels = tl.program_id(0) * tile + tl.arange(0, tile)
    inside, start = pixels < height * width, tl.load(image + 7)
    before = tl.where(pixels < width, (height - 1) * width + pixels - 1, pixels - width)  # column after column
    own = tl.load(labels + start + pixels, mask=inside, other=0)
    other = tl.load(labels + start + before, mask=inside & (pixels > 0), other=0)
    tl.store(first_out + start + pixels, (own != other) | (pixels == 0), mask=inside)


@torch.library.custom_op("cliper::label_pixels", mutates_args=())
def label_pixels(
    maps: Tensor,
    images: Tensor,
    numbers: Tensor,
    scores: Tensor,
    floors: Tensor,
    competing: Sequence[int],
    pixels: Sequence[int],
    normalize: bool,
    has_thresholds: bool,
    kind: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The labels of all pixels of images of any sizes, and where runs of them begin.

    Args:
        maps: class maps of all images, float32 [entries]; contiguous.
        images: a row for each image, int64 [images, 8]: where its maps begin in ``maps``; their height and width; its
            own height and width; where its competing classes begin and end in ``numbers``; where its pixels begin in
            the result. Contiguous.
        numbers, scores, floors: classes from 0 that compete in the images, image after image, their scores and least
            values; int64 and float32 [competing classes].
        competing, pixels: how many competing classes and pixels each image has.
        normalize: stretch values to start at 0 and end at 1.
        has_thresholds: otherwise background is where the square of (1 - the winning value) is at least the value.
        kind: number format of the labels.

    Returns:
        Labels [pixels] in the format ``kind``, and bool [pixels].
    """
    labels = maps.new_empty(sum(pixels), dtype=kind)
    first = maps.new_empty(sum(pixels), dtype=torch.bool)
    highest, lowest = torch.empty_like(scores), torch.empty_like(scores)
    if any(competing):
        map_extremes_kernel[(len(images), max(competing))](
            maps, images, numbers, highest, lowest, tile=PIXELS, enable_fp_fusion=False
        )  # fmt: skip
    grid = (triton.cdiv(max(pixels), PIXELS), len(images))
    winning_labels_kernel[grid](
        maps, images, numbers, scores, floors, highest, lowest, labels,
        normalize=normalize, has_thresholds=has_thresholds, tile=PIXELS, enable_fp_fusion=False,
    )  # fmt: skip
    first_pixels_kernel[grid](labels, images, first, tile=PIXELS)
    return labels, first


@label_pixels.register_fake
def _(
    maps, images, numbers, scores, floors, competing, pixels, normalize, has_thresholds, kind
) -> tuple[Tensor, Tensor]:
    return maps.new_empty(sum(pixels), dtype=kind), maps.new_empty(sum(pixels), dtype=torch.bool)
