"""Class scores and the label map at the image's own size."""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64, Integer
from torch import Tensor
from torch.nn import functional as F

from cliper.groups import Groups
from cliper.segmenter import AllowedClasses
from cliper.settings import MethodSettings
from cliper.transfer import upload_together

Chosen = list[int] | slice
"""Which of some maps."""
EVERY = slice(None)

CPU_BLOCK_VALUES = 2**21
"""Map values that are worked on together on a CPU: 8 MiB. Fewer values stay in a smaller cache, but threads that sleep
between operations (`cluster.session.WORKER_ENVIRONMENT`) then take longer to wake than to work."""
GPU_BLOCK_VALUES = 2**27
"""The same on a GPU: 512 MiB, so that most images are one block."""
SMALLEST_BLOCK_ROWS = 8
"""Products of fewer rows round in another order."""
EPSILON = 1e-5
"""Added to a map's maximum before its values are divided by it."""
SPAN_EPSILON = 1e-6
"""The same for the span of values that are stretched."""


def class_scores(coarse: Groups, refined: Groups) -> Float[Tensor, "images classes"]:
    """Max-pooled image-level scores: the mean of both maps' maxima (paper table 2). At least 0, can exceed 2.

    Refined values are weighted means of coarse ones. Rounding must not take their maximum above that of the coarse map.

    Args:
        coarse, refined: class maps [classes, height, width] of each image.
    """
    highest, peaks = map_maxima(coarse), map_maxima(refined)
    return (highest + peaks.minimum(highest)) / 2


def map_maxima(maps: Groups) -> Float[Tensor, "images classes"]:
    """The largest value of each class map [classes, height, width] of each image."""
    return maps.map(lambda stack: stack.flatten(2).amax(dim=2)).stacked()


def present_classes(
    scores: Float[Tensor, "images classes"], settings: MethodSettings, allowed: AllowedClasses
) -> list[list[int]]:
    """For each image the classes (from 0) whose scores pass their thresholds, or the given ones; ascending.

    Args:
        scores: on the CPU.
        settings: thresholds on scores (`MethodSettings.score_thresholds`).
        allowed: where image-level labels are given (paper table 3), the classes that are present, whatever their
            scores; None leaves that to the scores.
    """
    limits = torch.tensor(settings.score_thresholds(scores.shape[1]), dtype=torch.float32)
    return [
        (own > limits).nonzero().flatten().tolist() if given is None else sorted(given)
        for own, given in zip(scores, allowed, strict=True)
    ]


class ResizedMaps:
    """Maps resized bilinearly (align_corners=False) to an image's size; of a large image one block of rows at a time.

    Blocks come from two steps: the maps are resized to the image's width once, and row y of the result is then
    ``(1 - a) upper + a lower``, a product of two weights with neighbouring rows. On a CPU with
    several threads it rounds as ``F.interpolate`` does. With one thread, and where the image is narrower than about
    110 px, the last place can differ.
    """

    def __init__(self, maps: Float[Tensor, "maps side_h side_w"], image_hw: tuple[int, int]) -> None:
        self.height, self.width = image_hw
        block_values = GPU_BLOCK_VALUES if maps.is_cuda else CPU_BLOCK_VALUES
        self.block_rows = max(SMALLEST_BLOCK_ROWS, block_values // (len(maps) * self.width))
        self.side = maps.shape[1]
        if self.block_rows >= self.height:
            self.whole = F.interpolate(maps[None], image_hw, mode="bilinear", align_corners=False)[0]
            return
        # Lower rows come first: the product then adds the upper row's term last, as F.interpolate does.
        self.columns = F.interpolate(maps[None], (self.side, self.width), mode="bilinear")[0].flip(1)
        one_hot = torch.eye(self.side, dtype=maps.dtype, device=maps.device)
        self.weights = F.interpolate(one_hot[None], self.height, mode="linear")[0].T.flip(1)

    def blocks(self) -> list[slice]:
        """Rows that are worked on together, from top to bottom."""
        starts = range(0, self.height, self.block_rows)
        return [slice(start, min(start + self.block_rows, self.height)) for start in starts]

    def block(self, rows: slice, chosen: Chosen) -> Float[Tensor, "chosen rows width"]:
        """Some rows of the chosen maps."""
        if self.block_rows >= self.height:
            return self.whole[chosen]
        first = self.side - 2 - rows.stop * self.side // self.height
        used = slice(max(first, 0), self.side + 1 - rows.start * self.side // self.height)
        return self.weights[rows, used] @ self.columns[chosen, used]


class Competitors(NamedTuple):
    """The classes that compete for an image's pixels.

    Attributes:
        classes: from 0, ascending.
        numbers, labels, scores, floors: the same classes, their labels, scores and least values.
    """

    classes: list[int]
    numbers: Int64[Tensor, " competing"]
    labels: Integer[Tensor, " competing"]
    scores: Float32[Tensor, " competing"]
    floors: Float32[Tensor, " competing"]


def find_competitors(
    scores: Float[Tensor, "images classes"],
    settings: MethodSettings,
    allowed: AllowedClasses,
    with_floors: bool = True,
) -> list[Competitors]:
    """The classes that compete in each image, on the CPU.

    Args:
        scores: as from `class_scores`, on the CPU.
        settings: thresholds on scores and values (`MethodSettings.score_thresholds`, ``value_thresholds``).
        allowed: see `present_classes`.
        with_floors: classes must reach their threshold on values; otherwise their least value is 0.
    """
    floors = torch.tensor(settings.value_thresholds(scores.shape[1]), dtype=torch.float32) * with_floors
    found = []
    for own, classes in zip(scores, present_classes(scores, settings, allowed), strict=True):
        numbers = torch.tensor(classes, dtype=torch.int64)
        labels = (numbers + 1).to(label_format(scores.shape[1]))
        found.append(Competitors(classes, numbers, labels, own[numbers], floors[numbers]))
    return found


def send(competitors: Sequence[Competitors], device: torch.device) -> list[Competitors]:
    """The same where the maps are, in one transfer."""
    sent = iter(upload_together([column for _, *columns in competitors for column in columns], device))
    return [Competitors(classes, *islice(sent, len(columns))) for classes, *columns in competitors]


def label_map(
    refined: Float[Tensor, "classes side_h side_w"],
    competitors: Competitors,
    image_hw: tuple[int, int],
    settings: MethodSettings,
) -> Integer[Tensor, "height width"]:
    """The class of every pixel of the image: 0 is background, c + 1 is class c.

    Background is where no class reaches its threshold (`MethodSettings.value_thresholds`). If all thresholds are 0,
    background is where the square of (1 - the winning value) is at least the winning value.

    Args:
        competitors: with floors, where the maps are.
        settings: thresholds and ``normalize_maps``.

    Returns:
        uint8, or int32 for more than 255 classes.
    """
    has_thresholds = any(settings.value_thresholds(len(refined)))
    labels = empty_labels(image_hw, len(refined), refined.device)
    for rows, value, winners in winning_classes(refined, competitors, image_hw, settings):
        labels[rows] = winners if has_thresholds else winners.masked_fill((1 - value) ** 2 >= value, 0)
    return labels


def label_together(
    refined: Groups, competitors: Sequence[Competitors], sizes: Sequence[tuple[int, int]], settings: MethodSettings
) -> tuple[Integer[Tensor, " pixels"], Bool[Tensor, " pixels"]]:
    """`label_map` of all images of a batch with kernels, one image after the other and row by row.

    Args:
        refined: class maps [classes, side_h, side_w] of each image.
        competitors: with floors, on the CPU.
        sizes: height and width of each image.
        settings: thresholds and ``normalize_maps``.

    Returns:
        The labels, and where runs of them begin (`cliper.runs.first_pixels`).
    """
    from cliper.label_kernels import label_pixels  # Triton is only there where torch knows CUDA

    counts, pixels = [len(of.classes) for of in competitors], [height * width for height, width in sizes]
    table = torch.tensor(
        [
            [start, *maps.shape[1:], *image_hw, end_class - count, end_class, end_pixel - size]
            for start, maps, image_hw, count, end_class, size, end_pixel in zip(
                refined.starts(), refined, sizes, counts, accumulate(counts), pixels, accumulate(pixels), strict=True
            )
        ]
    )
    columns = [torch.cat([getattr(of, name) for of in competitors]) for name in ("numbers", "scores", "floors")]
    sent = upload_together([table, *columns], refined.stacks[0].device)
    classes = len(refined[0])
    has_thresholds = any(settings.value_thresholds(classes))
    return label_pixels(
        refined.flat(), *sent, counts, pixels, settings.normalize_maps, has_thresholds, label_format(classes)
    )


def empty_labels(image_hw: tuple[int, int], classes: int, device: torch.device) -> Integer[Tensor, "height width"]:
    """A label map without content."""
    return torch.empty(image_hw, dtype=label_format(classes), device=device)


def label_format(classes: int) -> torch.dtype:
    """The smallest number format that holds the labels of so many classes."""
    return torch.uint8 if classes < 256 else torch.int32


def winning_classes(
    refined: Float[Tensor, "classes side_h side_w"],
    competitors: Competitors,
    image_hw: tuple[int, int],
    settings: MethodSettings,
) -> Iterator[tuple[slice, Float[Tensor, "rows width"], Integer[Tensor, "rows width"]]]:
    """The largest value of a class at every pixel, and its label: c + 1 for class c, 0 where all values are 0.

    A class competes with its map, resized bilinearly, relative to the map's maximum and times its score, but not where
    its value is below its floor. Of equal values the first class's counts.

    Args:
        settings: ``normalize_maps``.

    Yields:
        Blocks of rows from top to bottom: the rows, values and labels.
    """
    classes, numbers, of_classes, scores, floors = competitors
    if not classes:
        background = empty_labels(image_hw, len(refined), refined.device).zero_()
        yield slice(0, image_hw[0]), refined.new_zeros(image_hw), background
        return
    maps = ResizedMaps(refined[numbers], image_hw)
    blocks = maps.blocks()
    values = MapValues(maps, blocks, scores, settings.normalize_maps)
    if refined.is_cuda:  # asking which classes matter in a block would cost more than all of them
        for rows in blocks:
            yield rows, *winners_at_once(reaching(values.block(rows, EVERY), floors), of_classes)
        return
    highest, kind = values.block_maxima(), label_format(len(refined))
    competing = ((highest >= floors) & (highest > 0)).tolist()
    for rows, reaches in zip(blocks, competing, strict=True):
        chosen = [position for position, reached in enumerate(reaches) if reached]
        block = reaching(values.block(rows, chosen), floors[chosen])
        yield rows, *winners_in_turn(block, [classes[position] + 1 for position in chosen], kind)


def reaching(
    values: Float[Tensor, "chosen rows width"], floors: Float[Tensor, " chosen"]
) -> Float[Tensor, "chosen rows width"]:
    """The values, changed in place to 0 where they are below the class's floor."""
    return values.masked_fill_(values < floors[:, None, None], 0)


def winners_at_once(
    values: Float[Tensor, "chosen rows width"], labels: Integer[Tensor, " chosen"]
) -> tuple[Float[Tensor, "rows width"], Integer[Tensor, "rows width"]]:
    """The largest value at every pixel and the label of its class, with few kernels."""
    best, winner = values.amax(dim=0), values.argmax(dim=0)  # of equal values the first
    return best, labels[winner].masked_fill_(best <= 0, 0)


def winners_in_turn(
    values: Float[Tensor, "chosen rows width"], labels: Sequence[int], kind: torch.dtype
) -> tuple[Float[Tensor, "rows width"], Integer[Tensor, "rows width"]]:
    """The same class after class, without the memory of a number for every class and pixel."""
    best = values.new_zeros(values.shape[1:])
    winner = torch.zeros(values.shape[1:], dtype=kind, device=values.device)
    for label, value in zip(labels, values, strict=True):
        winner.masked_fill_(value > best, label)
        best = torch.maximum(best, value)
    return best, winner


class MapValues:
    """What classes compete with: their resized maps relative to their maxima, times their scores, perhaps stretched.

    All steps keep the order of values. So the extremes after a step follow from the extremes before it, and the whole
    maps need to be seen only once before values can be computed block by block.

    Args:
        maps, scores: of the classes that compete.
        blocks: of rows, as from `ResizedMaps.blocks`.
        normalize: stretch values to start at 0 and end at 1.
    """

    def __init__(
        self, maps: ResizedMaps, blocks: list[slice], scores: Float[Tensor, " classes"], normalize: bool
    ) -> None:
        self.maps, self.scores = maps, scores
        whole = (maps.block(rows, EVERY).flatten(1) for rows in blocks)  # aminmax is 30 times slower on a CPU
        extremes = [(block.amax(dim=1), block.amin(dim=1) if normalize else None) for block in whole]
        self.highest_of_blocks = [high for high, _ in extremes]
        highest = reduce(torch.maximum, self.highest_of_blocks)
        self.divisors = highest + EPSILON
        self.offsets = self.spans = None
        if normalize:
            lowest = reduce(torch.minimum, (low for _, low in extremes if low is not None))
            self.offsets = lowest / self.divisors * scores
            self.spans = highest / self.divisors * scores - self.offsets + SPAN_EPSILON

    def block_maxima(self) -> Float[Tensor, "blocks classes"]:
        """The largest value of every class in every block."""
        return self.values(torch.stack(self.highest_of_blocks, dim=1), EVERY).T

    def block(self, rows: slice, chosen: Chosen) -> Float[Tensor, "chosen rows width"]:
        """The values of the chosen classes in a block of rows."""
        maps = self.maps.block(rows, chosen)
        return self.values(maps.flatten(1), chosen).view_as(maps)

    def values(self, maps: Float[Tensor, "chosen entries"], chosen: Chosen) -> Float[Tensor, "chosen entries"]:
        """Map entries to values."""
        values = (maps / self.divisors[chosen, None]).mul_(self.scores[chosen, None])
        if self.offsets is not None and self.spans is not None:
            values.sub_(self.offsets[chosen, None]).div_(self.spans[chosen, None])
        return values
