"""A label map as runs of equal labels, found on the device where the map is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Runs:
    """A label map as runs of equal labels, in column-major order as COCO counts pixels.

    Attributes:
        starts: first pixel of each run, ascending, from 0. Neighbouring runs differ in their label.
        labels: 0 is background, c + 1 is class c.
        image_hw: height and width of the label map.
    """

    starts: Int64[np.ndarray, " runs"]
    labels: Integer[np.ndarray, " runs"]
    image_hw: tuple[int, int]


def find_runs(label_maps: Sequence[Integer[Tensor, "_height _width"]]) -> list[Runs]:
    """The runs of label maps of any sizes, found where the maps are."""
    first = torch.cat([first_pixels(labels).flatten() for labels in label_maps])
    values = torch.cat([labels.flatten() for labels in label_maps])
    return runs_from(first, values, [(labels.shape[0], labels.shape[1]) for labels in label_maps])


def runs_from(
    first: Bool[Tensor, " pixels"], labels: Integer[Tensor, " pixels"], sizes: Sequence[tuple[int, int]]
) -> list[Runs]:
    """The runs of label maps that lie one after the other, row by row; only they leave a GPU, in one transfer.

    Args:
        first: as from `first_pixels`.
        labels: of the same pixels.
        sizes: height and width of each label map.
    """
    where = first.nonzero()[:, 0]
    firsts, values = torch.stack([where, labels[where].long()]).cpu().numpy()
    values = values.astype(np.uint8 if labels.dtype == torch.uint8 else np.int32)
    ends = np.cumsum([height * width for height, width in sizes])
    bounds = np.searchsorted(firsts, ends[:-1])
    found = []
    for (height, width), end, pixels, of_run in zip(
        sizes, ends, np.split(firsts, bounds), np.split(values, bounds), strict=True
    ):
        row, column = np.divmod(pixels - (end - height * width), width)
        starts = column * height + row
        order = np.argsort(starts)
        found.append(Runs(starts[order], of_run[order], (height, width)))
    return found


def first_pixels(labels: Integer[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """True where a run begins: where the pixel before, in column-major order, has another label."""
    first = torch.empty(labels.shape, dtype=torch.bool, device=labels.device)
    first[1:] = labels[1:] != labels[:-1]
    first[0, 1:] = labels[0, 1:] != labels[-1, :-1]
    first[0, 0] = True
    return first
