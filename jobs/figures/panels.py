"""What the figures show: images, maps and label maps in rows and columns; without drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliper.baselines import last_block
from cliper.pipeline import Cliper
from cliper.preprocess import Prepared
from cliper.segmenter import Prediction
from cliper.transfer import channels_first
from cliper.vision import VisionTower, attention_probabilities, trace
from schemas.runs import labels_from_runs

DEPTHS = 5
"""Blocks whose embeddings are shown, from the first to the last."""


class Point(NamedTuple):
    """A place in an image, as shares of its width from the left and of its height from the top, 0 to 1."""

    x: float
    y: float

    def cell(self, grid_hw: tuple[int, int]) -> int:
        """The cell of a grid that holds the point, counted row by row."""
        row, column = (
            min(int(share * cells), cells - 1) for share, cells in zip((self.y, self.x), grid_hw, strict=True)
        )
        return row * grid_hw[1] + column


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a figure.

    Attributes:
        title: above it; may be empty.
        pixels: uint8 [height, width, 3], or a map [height, width] that is shown in colours from its least to its
            greatest value, or labels as int32 [height, width], of which 0 is left black.
        points: that are marked.
    """

    title: str
    pixels: np.ndarray
    points: tuple[Point, ...] = ()

    @property
    def is_labels(self) -> bool:
        return self.pixels.dtype == np.int32


Rows = list[list[Panel]]


def embeddings(tower: VisionTower, image: Image.Image, prepared: Prepared, point: Point) -> Rows:
    """Paper figure 2: what CLIP's blocks see. Above, the three first principal components of the patch embeddings as
    red, green and blue; below, the cosine similarity of every patch to the one at the point.
    """
    grid_hw, blocks = grid_of(tower, prepared), block_outputs(tower, prepared)
    shown = np.linspace(0, len(blocks) - 1, min(DEPTHS, len(blocks))).round().astype(int).tolist()
    above, below = [Panel("image", np.asarray(image))], [Panel("point", np.asarray(image), (point,))]
    for block in shown:
        patches = blocks[block]
        above.append(Panel(f"block {block + 1}", principal_colours(patches).reshape(*grid_hw, 3)))
        similarity = F.cosine_similarity(patches, patches[point.cell(grid_hw)][None], dim=-1)
        below.append(Panel("", similarity.unflatten(0, grid_hw).cpu().numpy()))
    return [above, below]


def attention(cliper: Cliper, image: Image.Image, prepared: Prepared, points: Sequence[Point]) -> Rows:
    """Paper figure 3: what CLIP and Stable Diffusion attend to from points of an image, one row each.

    CLIP: the last block's attention, and the mean of the earlier blocks' (equation 8). Stable Diffusion, or what stands
    in for it: the mean of its heads, and their product (equation 9). CLIP's are means over heads. The strongest
    hundredth of each map has one colour; without that, the point itself would be all that is seen.
    """
    tower, grid_hw = cliper.tower, grid_of(cliper.tower, prepared)
    traced = trace(tower, normalised(tower, prepared), "release", keep_attention=True)
    last = tower.blocks[-1]
    query, key, _ = last.attention.qkv(last.before_attention(traced.features[-1]), traced.rotation)
    first = tower.prefix_tokens
    assert traced.attention_sum is not None, "asked for"
    of_clip = {
        "CLIP, last block": attention_probabilities(query, key)[0].mean(dim=0)[first:, first:],
        "CLIP, early blocks": traced.attention_sum[0].mean(dim=0)[first:, first:] / (len(tower.blocks) - 1),
    }
    ((_, (layers, second_hw)),) = cliper.affinity_attention([prepared], [0])
    heads = [pair for queries, keys in layers for pair in zip(queries[0], keys[0], strict=True)]
    name = cliper.settings.affinity
    rows = []
    for point in points:
        row = [Panel("image", np.asarray(image), (point,))]
        for title, weights in of_clip.items():
            row.append(Panel(title, without_peak(weights[point.cell(grid_hw)]).unflatten(0, grid_hw).cpu().numpy()))
        found = map(without_peak, attended_by_heads(heads, point.cell(second_hw)))
        for title, weights in zip((f"{name}, mean of heads", f"{name}, product"), found, strict=True):
            row.append(Panel(title, weights.unflatten(0, second_hw).cpu().numpy()))
        rows.append(row)
    return rows


def without_peak(weights: Float[Tensor, " cells"]) -> Float[Tensor, " cells"]:
    """Weights, the strongest hundredth lowered to the next."""
    return weights.clamp(max=weights.quantile(0.99, interpolation="lower"))


def methods(found: dict[str, Prediction], image: Image.Image) -> Rows:
    """Paper figure 5: label maps of several methods side by side, by title."""
    return [[Panel("image", np.asarray(image)), *(Panel(title, labels_of(one)) for title, one in found.items())]]


def compensation(
    cliper: Cliper, image: Image.Image, prepared: Prepared, class_names: Sequence[str], most_classes: int
) -> Rows:
    """Paper figure 6: maps and masks before and after fine-grained compensation, for the classes with the highest
    scores, one row each."""
    maps = cliper.maps([prepared])
    (after,) = cliper.read_out(maps, [prepared])
    (before,) = cliper.read_out(maps._replace(refined=maps.coarse), [prepared])
    rows = []
    for index in np.argsort(-after.scores)[:most_classes].tolist():
        row = [Panel(class_names[index], np.asarray(image))]
        row.append(Panel("coarse map", maps.coarse[0][index].cpu().numpy()))
        row.append(Panel("refined map", maps.refined[0][index].cpu().numpy()))
        for title, prediction in (("mask before", before), ("mask after", after)):
            mask = np.where(labels_of(prediction) == index + 1, 255, 0).astype(np.uint8)
            row.append(Panel(title, np.repeat(mask[..., None], 3, axis=-1)))
        rows.append(row)
    return rows


def labels_of(prediction: Prediction) -> np.ndarray:
    """The label map, int32 [height, width]."""
    runs = prediction.runs
    return labels_from_runs(runs.starts, runs.labels, runs.image_hw).astype(np.int32)


def grid_of(tower: VisionTower, prepared: Prepared) -> tuple[int, int]:
    height, width, _ = prepared.clip.shape
    return height // tower.patch_size_px, width // tower.patch_size_px


def normalised(tower: VisionTower, prepared: Prepared) -> Float[Tensor, "1 3 input_height input_width"]:
    return tower.normalize(channels_first([prepared.clip], tower.device))


def block_outputs(tower: VisionTower, prepared: Prepared) -> list[Float[Tensor, "patches width"]]:
    """The patch embeddings after every block, in float32."""
    early = trace(tower, normalised(tower, prepared), "paper", keep_attention=False)
    last = last_block(tower.blocks[-1], early.features[-1], early.rotation, "clip")
    return [x[0, tower.prefix_tokens :].float() for x in (*early.features, last)]


def principal_colours(patches: Float[Tensor, "patches width"]) -> np.ndarray:
    """The three first principal components, each from its least (0) to its greatest value (255), uint8 [patches, 3]."""
    centred = patches - patches.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    strongest = directions[:3].gather(1, directions[:3].abs().argmax(dim=1, keepdim=True))
    values = centred @ (directions[:3] * strongest.sign()).T  # the sign of a component is arbitrary
    low, high = values.amin(dim=0), values.amax(dim=0)
    return (255 * (values - low) / (high - low).clamp(min=1e-12)).round().to(torch.uint8).cpu().numpy()


def attended_by_heads(
    heads: Sequence[tuple[Tensor, Tensor]], position: int
) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
    """A row of the mean of the heads' attention, and of their product ``A_0 A_1 ... A_{n-1}`` (paper equation 9)."""
    positions = len(heads[0][0])
    mean = torch.zeros(positions, device=heads[0][0].device)
    product = F.one_hot(torch.tensor(position, device=mean.device), positions).float()
    for query, key in heads:
        attention = attention_probabilities(query, key)
        mean += attention[position] / len(heads)
        product = product @ attention
    return mean, product
