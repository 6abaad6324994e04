"""With ``skip_absent``, classes that cannot be present in an image are not compensated."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliper.groups import Groups
from cliper.labels import map_maxima, present_classes
from cliper.segmenter import AllowedClasses
from cliper.settings import MethodSettings
from cliper.transfer import upload

GATHERED_BATCHES = 8
"""With ``skip_absent`` so many batches are looked at together, to fill batches with images that may show a class."""


def images_at_once(settings: MethodSettings, batch: int) -> int:
    """Images that a labelling process on a GPU should get together, if the models take them in batches."""
    return batch * (GATHERED_BATCHES if settings.skip_absent else 1)


def possible_classes(
    coarse: Groups, order: Int[Tensor, " classes"], settings: MethodSettings, allowed: AllowedClasses
) -> list[list[int]]:
    """The classes (from 0) that can be present in each image.

    Refined values are weighted means of coarse ones. So a class's score is at most the maximum of its coarse map,
    and a class whose maximum does not pass the threshold on scores is absent.

    Args:
        coarse: coarse maps [classes, height, width] of each image.
        order: the place of every class of the vocabulary among the maps, on the CPU.
    """
    return present_classes(map_maxima(coarse).cpu()[:, order], settings, allowed)


def class_places(
    chosen: Sequence[list[int]], order: Int[Tensor, " classes"], device: torch.device
) -> Int[Tensor, "images most"]:
    """Where the chosen classes are among the maps, on the device. In images with fewer of them than another the last
    one comes again; without any it is the first map.
    """
    rows = [order[of].tolist() or [0] for of in chosen]
    most = max(map(len, rows))
    return upload(torch.tensor([row + row[-1:] * (most - len(row)) for row in rows]), device)


def filled_up(
    coarse: Groups,
    sharp: Mapping[int, Float[Tensor, "most _grid_h _grid_w"]],
    places: Int[Tensor, "images most"],
) -> Groups:
    """Refined maps of all classes: of those not chosen the coarse maximum everywhere, which is their score then.

    Args:
        coarse: coarse maps [classes, height, width] of each image.
        sharp: for each image with chosen classes their refined maps.
        places: from `class_places`.
    """
    found = []
    for index, maps in enumerate(coarse):
        filled = maps.flatten(1).amax(dim=1)[:, None, None]
        if index in sharp:
            own = sharp[index]
            filled = filled.repeat(1, *own.shape[1:]).index_copy_(0, places[index], own)
        found.append(filled)
    return Groups.apart(found)
