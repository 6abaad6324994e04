"""From dense features to coarse class maps on the patch grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cliper.text import WORLD_WORDS

HEAD_START = 0.2
"""Share of a word's similarity to the mean of the background that is added to its similarities (docs/words.md)."""
MAP_VALUES = 2**28
"""Logits that are computed together on a GPU: 1 GiB."""


@dataclass(frozen=True)
class Queries:
    """The text side of the method.

    Attributes:
        rows: classes' query rows, then background rows; from `build` also the mean of the classes' rows, a query for
            "anything".
        class_of_row: for each of the leading rows, the class (from 0) that it is a query of; every class has one.
        classes: number of classes.
        best_logit: a class competes once, with its best query. Otherwise each of its queries competes.
        head_start: added to the cosine similarity of every patch to a query, float32 [queries].
        class_order: int64 [classes], the place of every class of the vocabulary among the classes here.
        background_order: int64 [background], for every background row here its place in the vocabulary.
        visual, visual_offsets: what examples show of the classes, see `schemas.embeddings.VisualQueries`; zeros for a
            class without examples, None if no class has any.
    """

    rows: Float[Tensor, "queries dimensions"]
    class_of_row: Int[Tensor, " class_rows"]
    classes: int
    best_logit: bool
    head_start: Float[Tensor, " queries"]
    class_order: Int[Tensor, " classes"]
    background_order: Int[Tensor, " background"]
    visual: Float[Tensor, "late_features classes dimensions"] | None = None
    visual_offsets: Float[Tensor, " classes"] | None = None

    @classmethod
    def build(
        cls,
        class_rows: Float[Tensor, "class_rows dimensions"],
        background_rows: Float[Tensor, "background_rows dimensions"],
        class_of_row: Int[Tensor, " class_rows"],
    ) -> "Queries":
        """Put the query list together from L2-normalised text embeddings, as the official release does."""
        rows = torch.cat([class_rows, background_rows, class_rows.mean(dim=0, keepdim=True)])
        classes = int(class_of_row.max()) + 1
        order = torch.arange(classes), torch.arange(len(background_rows))
        return cls(rows, class_of_row, classes, False, torch.zeros(len(rows)), *order)

    @classmethod
    def build_open(
        cls,
        class_rows: Float[Tensor, "class_rows dimensions"],
        background_rows: Float[Tensor, "background_rows dimensions"],
        class_of_row: Int[Tensor, " class_rows"],
    ) -> "Queries":
        """The query list of preset ``open``. It has no query for "anything": for one class it would be that class.

        Rows are sorted by their values and none appears twice in a class or in the background. So repeated queries
        and the order of the vocabulary do not change the last bit of a result.

        Common words such as person or wall lie near the mean of all words. Their similarity varies less over an image,
        so that special words, which fit less well (handbag, tie), win narrowly. They get a head start: a share of their
        own similarity to the mean of the background, or of all words if the background is small. Few words have no
        meaningful mean and give none.
        """
        classes = int(class_of_row.max()) + 1
        own = [torch.unique(class_rows[class_of_row == index], dim=0) for index in range(classes)]
        order = sorted(range(classes), key=lambda index: own[index].tolist())
        background, position = np.unique(background_rows.numpy(), axis=0, return_index=True)
        rows = torch.cat([*(own[index] for index in order), torch.from_numpy(background)])
        sizes = torch.tensor([len(own[index]) for index in order])
        head_start = torch.zeros(len(rows))
        words = torch.from_numpy(background) if len(background) >= WORLD_WORDS else rows
        if len(words) >= WORLD_WORDS:
            centre = words.mean(dim=0)
            head_start = HEAD_START * (rows @ centre - (words @ centre).mean())
        return cls(
            rows, torch.arange(classes).repeat_interleave(sizes), classes, True, head_start,
            torch.argsort(torch.tensor(order)), torch.from_numpy(position),
        )  # fmt: skip

    def with_examples(
        self,
        rows: Float[Tensor, "late_features shown dimensions"],
        offsets: Float[Tensor, " shown"],
        shown: Sequence[int],
    ) -> "Queries":
        """The same with visual queries for some classes, which ``shown`` names by their places in the vocabulary."""
        here = self.class_order[list(shown)]
        visual = rows.new_zeros(len(rows), self.classes, rows.shape[-1]).index_copy_(1, here, rows)
        return replace(
            self, visual=visual, visual_offsets=offsets.new_zeros(self.classes).index_copy_(0, here, offsets)
        )

    def to(self, device: torch.device) -> "Queries":
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})


def visual_evidence(
    dense: Float[Tensor, "features batch patches dimensions"], queries: Queries
) -> Float[Tensor, "batch queries patches"] | None:
    """What examples add to the logits of every query, whatever the feature; None without examples.

    All late features of a patch say together what it looks like. With evidence of its own for every feature, early
    ones, which say little of it, would spoil the result (docs/beyond.md).
    """
    if queries.visual is None or queries.visual_offsets is None:
        return None
    late = dense[-len(queries.visual) :]
    of_features = (F.normalize(of, dim=-1) @ rows.T for of, rows in zip(late, queries.visual, strict=True))
    of_classes = (reduce(torch.add, of_features) + queries.visual_offsets).mT
    rest = len(queries.rows) - len(queries.class_of_row)
    return F.pad(of_classes[:, queries.class_of_row], (0, 0, 0, rest))


def query_logits(
    dense: Float[Tensor, "batch patches dimensions"], queries: Queries, logit_scale: float
) -> Float[Tensor, "batch queries patches"]:
    """Cosine similarity of every patch to every query, plus the query's head start, times ``logit_scale``."""
    similarity = F.normalize(dense, dim=-1) @ F.normalize(queries.rows, dim=-1).T + queries.head_start
    return logit_scale * similarity.transpose(1, 2)


def probabilities(
    logits: Float[Tensor, "batch queries patches"], queries: Queries
) -> tuple[Float[Tensor, "batch classes patches"], Float[Tensor, "batch background patches"]]:
    """Softmax over all queries: the probabilities of the classes and of the background rows.

    A class's probability is the maximum over its own queries' probabilities. With ``best_logit``, the softmax is over
    the classes, each with the maximum of its own queries' logits, and the background rows.
    """
    if queries.best_logit:
        best = best_of_class(logits, queries)
        found = torch.cat([best, logits[:, len(queries.class_of_row) :]], dim=1).softmax(dim=1)
        return found[:, : queries.classes], found[:, queries.classes :]
    found = logits.softmax(dim=1)
    first = len(queries.class_of_row)
    return best_of_class(found, queries), found[:, first : first + len(queries.background_order)]


def probabilities_of_features(
    dense: Float[Tensor, "features batch patches dimensions"], queries: Queries, logit_scale: float
) -> Iterator[
    tuple[Float[Tensor, "_features batch classes patches"], Float[Tensor, "_features batch background patches"]]
]:
    """`probabilities` for every feature: on a GPU block by block, on a CPU one by one."""
    features, batch, patches, _ = dense.shape
    together = 1
    if dense.is_cuda:
        together = max(1, min(features, MAP_VALUES // (batch * patches * len(queries.rows))))
    evidence = visual_evidence(dense, queries)
    for some in dense.split(together):
        logits = query_logits(some.flatten(0, 1), queries, logit_scale)
        if evidence is not None:
            logits += evidence.repeat(len(some), 1, 1)
        maps, background = (of.unflatten(0, (-1, batch)) for of in probabilities(logits, queries))
        yield maps, background


def best_of_class(
    values: Float[Tensor, "batch queries patches"], queries: Queries
) -> Float[Tensor, "batch classes patches"]:
    """The maximum of each class over its own queries."""
    values = values[:, : len(queries.class_of_row)]
    if values.shape[1] == queries.classes:
        return values
    index = queries.class_of_row[None, :, None].expand_as(values)
    best = values.new_full((len(values), queries.classes, values.shape[-1]), -torch.inf)
    return best.scatter_reduce(1, index, values, "amax")


def class_maps(
    logits: Float[Tensor, "batch queries patches"], queries: Queries
) -> Float[Tensor, "batch classes patches"]:
    """The probabilities of the classes alone; see `probabilities`."""
    return probabilities(logits, queries)[0]


def lost_to(
    coarse: Float[Tensor, "batch classes patches"],
    maps: Float[Tensor, "batch classes patches"],
    background: Float[Tensor, "batch background patches"],
    queries: Queries,
) -> Int[Tensor, "batch classes"]:
    """The background word that is more probable than a class where the class's coarse map is highest; -1 if none is.

    Args:
        coarse: coarse maps.
        maps, background: probabilities, both summed over the same features.
    """
    if not background.shape[1]:
        return torch.full(coarse.shape[:2], -1, device=coarse.device)
    peak = coarse.argmax(dim=-1, keepdim=True)
    highest, row = background.gather(2, peak.mT.expand(-1, background.shape[1], -1)).max(dim=1)
    word = queries.background_order[row]
    return word.masked_fill(highest <= maps.gather(2, peak)[..., 0], -1)


def coarse_maps(
    maps: Sequence[Float[Tensor, "_features batch classes patches"]],
    attention: Float[Tensor, "batch patches patches"],
    selected: int,
    attention_threshold: float,
    early_embeddings: bool,
) -> Float[Tensor, "batch classes patches"]:
    """Spread the selected feature's maps over similar patches and add the mean of all maps.

    Entries of the selected maps below ``attention_threshold`` times their class's maximum become zero, also for the
    mean. Values are at least 0 and are not probabilities: they can exceed 2.

    Args:
        maps: class maps of all kept features, in blocks of some features.
        attention: entry (i, j) is how much of patch i's value goes to patch j.
        selected: index of the selected feature.
        attention_threshold: 0 to 1.
        early_embeddings: add the mean; off returns the spread map alone.
    """
    parts, before = [], selected
    for block in maps:
        if 0 <= before < len(block):
            single = block[before]
            chosen = single * (single >= attention_threshold * single.amax(dim=-1, keepdim=True))
            parts += [block[:before], chosen[None], block[before + 1 :]]
        else:
            parts.append(block)
        before -= len(block)
    spread = chosen @ attention
    return spread + sum_of_features(parts) / sum(map(len, maps)) if early_embeddings else spread


def sum_of_features(
    blocks: Sequence[Float[Tensor, "_features batch entries patches"]],
) -> Float[Tensor, "batch entries patches"]:
    """The sum of the maps of all features, block after block; single features are added in their order."""
    return reduce(torch.add, (block[0] if len(block) == 1 else block.sum(dim=0) for block in blocks if len(block)))
