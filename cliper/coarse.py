"""From dense features to coarse class maps on the patch grid."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Queries:
    """The text side of the method.

    Attributes:
        rows: [classes' query rows; background rows; mean of the classes' rows], the last one a query for "anything".
        class_of_row: for each of the leading rows, the class (from 0) that it is a query of; every class has one.
        classes: number of classes.
    """

    rows: Float[Tensor, "queries dimensions"]
    class_of_row: Int[Tensor, " class_rows"]
    classes: int

    @classmethod
    def build(
        cls,
        class_rows: Float[Tensor, "class_rows dimensions"],
        background_rows: Float[Tensor, "background_rows dimensions"],
        class_of_row: Int[Tensor, " class_rows"],
    ) -> "Queries":
        """Put the query list together from L2-normalised text embeddings."""
        rows = torch.cat([class_rows, background_rows, class_rows.mean(dim=0, keepdim=True)])
        return cls(rows, class_of_row, int(class_of_row.max()) + 1)

    def to(self, device: torch.device) -> "Queries":
        return Queries(self.rows.to(device), self.class_of_row.to(device), self.classes)


def query_logits(
    dense: Float[Tensor, "batch patches dimensions"], queries: Queries, logit_scale: float
) -> Float[Tensor, "batch queries patches"]:
    """Cosine similarity of every patch to every query, times ``logit_scale``."""
    similarity = F.normalize(dense, dim=-1) @ F.normalize(queries.rows, dim=-1).T
    return logit_scale * similarity.transpose(1, 2)


def class_maps(
    logits: Float[Tensor, "batch queries patches"], queries: Queries
) -> Float[Tensor, "batch classes patches"]:
    """Softmax over all queries; a class's map is the maximum over its own queries' probabilities."""
    rows = len(queries.class_of_row)
    maps = logits.softmax(dim=1)[:, :rows]
    if rows == queries.classes:
        return maps
    index = queries.class_of_row[None, :, None].expand_as(maps)
    return maps.new_zeros(len(maps), queries.classes, maps.shape[-1]).scatter_reduce(1, index, maps, "amax")


def coarse_maps(
    maps: Iterable[Float[Tensor, "batch classes patches"]],
    attention: Float[Tensor, "batch patches patches"],
    selected: int,
    attention_threshold: float,
    early_embeddings: bool,
) -> Float[Tensor, "batch classes patches"]:
    """Spread the selected feature's maps over similar patches and add the mean of all maps.

    Entries of the selected maps below ``attention_threshold`` times their class's maximum become zero, also for the
    mean. Values are at least 0 and are not probabilities: they can exceed 2.

    Args:
        maps: class maps of each kept feature; taken one by one, so that an iterator need not keep them all.
        attention: entry (i, j) is how much of patch i's value goes to patch j.
        selected: index of the selected feature.
        attention_threshold: 0 to 1.
        early_embeddings: add the mean; off returns the spread map alone.
    """
    total = chosen = attention.new_zeros(())
    for index, single in enumerate(maps):
        if index == selected:
            single = chosen = single * (single >= attention_threshold * single.amax(dim=-1, keepdim=True))
        total = total + single
    spread = chosen @ attention
    return spread + total / (index + 1) if early_embeddings else spread
