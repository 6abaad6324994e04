"""Open-vocabulary segmentation by other training-free methods, to compare CLIPer with.

They differ in CLIP's last block alone. All are read out as SCLIP and ProxyCLIP do: softmax over the queries at the
image's own size, and the class of the most probable query wins. How their authors evaluate them is in
`cliper.protocols`.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import lcm

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from cliper.baseline_settings import BaselineMethod, BaselineSettings, OwnAttention
from cliper.coarse import Queries, class_maps, query_logits
from cliper.labels import ResizedMaps, empty_labels
from cliper.preprocess import Prepared
from cliper.proxy import ProxyModel, mix_by_proxy
from cliper.runs import find_runs
from cliper.segmenter import AllowedClasses, Prediction, Winners, attention_bytes, batch_limit
from cliper.towers import Block, PositionResizing, Rotation
from cliper.transfer import channels_first
from cliper.vision import (
    VisionTower,
    attention_probabilities,
    check_width,
    merge_heads,
    normalize,
    trace,
)
from cliper.windows import window_corners


class Baseline:
    """A training-free method that changes CLIP's last block only.

    * ``clip``: nothing is changed.
    * ``maskclip`` (Zhou et al. 2022, arXiv 2112.01071), as released for vision transformers: every token attends to
      itself alone; residual and MLP stay.
    * ``sclip`` (Wang et al. 2023, arXiv 2312.01597): the sum of query-query and key-key attention; both stay.
    * ``clearclip`` (Lan et al. 2024, arXiv 2407.12442): query-query attention, neither residual nor MLP.
    * ``proxyclip`` (Lan et al. 2024, arXiv 2408.04883): another model's attention (`cliper.proxy`), likewise.

    Args:
        queries: text embeddings of the vocabulary. Their last row, CLIPer's query for "anything", takes no part.
        proxy: needed for ``proxyclip``, on the tower's device; not used otherwise.

    Attributes:
        inputs: how images must be prepared.
        largest_batch: see `cliper.segmenter.Segmenter`; each image is worked on alone anyway.

    Raises:
        ValueError: ``proxyclip`` without a proxy, or text embeddings of another width than the tower's.
    """

    problems: Sequence[str] = ()

    def __init__(
        self,
        tower: VisionTower,
        queries: Queries,
        method: BaselineMethod,
        settings: BaselineSettings,
        proxy: ProxyModel | None = None,
    ) -> None:
        if method == "proxyclip" and proxy is None:
            raise ValueError("proxyclip needs a proxy model")
        check_width(tower, queries.rows)
        self.tower, self.method, self.settings, self.proxy = tower, method, settings, proxy
        self.classes = queries.classes
        self.queries = competing_queries(queries.to(tower.device))
        self.inputs = settings.inputs(tower.patch_size_px, proxy.patch_size_px if proxy else None)
        self.largest_batch = batch_limit(tower.device)

    def memory_bytes(self, image: Prepared) -> int:
        """See `cliper.segmenter.Segmenter.memory_bytes`: logits and their sum, attention if there are no windows."""
        logits = 2 * 4 * len(self.queries.rows) * image.clip[..., 0].size if self.settings.harness == "published" else 0
        if self.settings.crop_px:
            return logits
        heads = self.tower.blocks[-1].heads
        return logits + 2 * heads * attention_bytes(image.clip, self.tower.patch_size_px)

    @torch.inference_mode()
    def predict(
        self, prepared: Sequence[Prepared], allowed: AllowedClasses | None = None, keep_winners: bool = False
    ) -> list[Prediction]:
        """See `cliper.segmenter.Segmenter.predict`. A class's score is its largest probability before logits are
        resized to the image.
        """
        found = []
        for image, may in zip(prepared, allowed or [None] * len(prepared), strict=True):
            logits = self.logits(image)
            maps = class_maps(logits.flatten(1)[None], self.queries)[0, : self.classes]
            barred = [] if may is None else [index for index in range(self.classes) if index not in may]
            value, labels = most_probable(logits, self.queries, self.classes, image.image_hw, barred)
            if small := self.small_classes(labels):
                barred = sorted({*barred, *small})
                value, labels = most_probable(logits, self.queries, self.classes, image.image_hw, barred)
            winners = Winners(value.cpu().numpy(), labels.cpu().numpy()) if keep_winners else None
            (runs,) = find_runs([labels.masked_fill(value < self.settings.background_threshold, 0)])
            found.append(Prediction(maps.amax(dim=-1).cpu().numpy(), runs, winners))
        return found

    def small_classes(self, labels: Integer[Tensor, "height width"]) -> list[int]:
        """The classes (from 0) in a label map that are too small to win; see `BaselineSettings`."""
        pixels = labels.flatten().bincount(minlength=self.classes + 1)[1:]
        small = (pixels > 0) & (pixels <= self.settings.area_threshold * pixels.sum())
        return small.nonzero().flatten().tolist()

    def logits(self, image: Prepared) -> Float[Tensor, "queries side_h side_w"]:
        """Scaled cosine similarity of image and queries.

        Harness ``shared``: on CLIP's patch grid, for ``proxyclip`` on the proxy's. Harness ``published``: on the pixels
        of the input, the mean of the windows that hold a pixel. Memory grows with queries times pixels then.
        """
        clip = self.tower.normalize(channels_first([image.clip], self.tower.device))
        proxy = None
        if self.proxy is not None:
            pixels = image.clip if image.affinity is None else image.affinity
            proxy = normalize(channels_first([pixels], self.tower.device), self.proxy.statistics)
        if self.settings.harness == "shared":
            return self.patch_logits(clip, proxy)
        size_hw = (clip.shape[2], clip.shape[3])
        height, width = (min(side, self.settings.crop_px or side) for side in size_hw)
        total = torch.zeros(len(self.queries.rows), *size_hw, device=clip.device)
        seen = torch.zeros(size_hw, device=clip.device)
        for top, left in window_corners(size_hw, (height, width), self.settings.stride_px):
            rows, columns = slice(top, top + height), slice(left, left + width)
            inside = None if proxy is None else proxy[..., rows, columns]
            total[:, rows, columns] += self.window_logits(clip[..., rows, columns], inside)
            seen[rows, columns] += 1
        return total / seen

    def window_logits(
        self, clip: Float[Tensor, "1 3 height width"], proxy: Float[Tensor, "1 3 height width"] | None
    ) -> Float[Tensor, "queries height width"]:
        """Logits at the window's own pixels. Sides that are no multiples of the patches are padded with the mean colour
        on both sides, as ClearCLIP and ProxyCLIP do."""
        height, width = clip.shape[2:]
        unit = (
            self.tower.patch_size_px if self.proxy is None else lcm(self.tower.patch_size_px, self.proxy.patch_size_px)
        )
        top, left = (-height % unit // 2, -width % unit // 2)
        padding = (left, -width % unit - left, top, -height % unit - top)
        logits = self.patch_logits(F.pad(clip, padding), None if proxy is None else F.pad(proxy, padding))
        padded_hw = (height + padding[2] + padding[3], width + padding[0] + padding[1])
        resized = F.interpolate(logits[None], padded_hw, mode="bilinear", align_corners=False)[0]
        return resized[:, top : top + height, left : left + width]

    def patch_logits(
        self, clip: Float[Tensor, "1 3 height width"], proxy: Float[Tensor, "1 3 proxy_height proxy_width"] | None
    ) -> Float[Tensor, "queries grid_h grid_w"]:
        """Logits on CLIP's patch grid, for ``proxyclip`` on the proxy's, from normalised pixels of whole patches."""
        tower, last = self.tower, self.tower.blocks[-1]
        positions: PositionResizing = "bicubic" if self.settings.harness == "published" else "bilinear"
        traced = trace(tower, clip, "release", keep_attention=False, positions=positions)
        x, prefix = traced.features[-1], tower.prefix_tokens
        grid_hw = (clip.shape[2] // tower.patch_size_px, clip.shape[3] // tower.patch_size_px)
        if self.method == "proxyclip":
            assert self.proxy is not None, "checked in the constructor"
            assert proxy is not None, "`logits` prepares it"
            features = self.proxy.features(proxy)
            patches = mix_by_proxy(last, last.before_attention(x), prefix, grid_hw, features)
            grid_hw = (features.shape[0], features.shape[1])
        else:
            patches = last_block(last, x, traced.rotation, self.method)[:, prefix:]
        dense = tower.parts.project(patches).float()
        return query_logits(dense, self.queries, self.settings.logit_scale)[0].unflatten(-1, grid_hw)


def last_block(
    block: Block, x: Float[Tensor, "batch tokens width"], rotation: Rotation, method: OwnAttention
) -> Float[Tensor, "batch tokens width"]:
    """CLIP's last block with the method's attention; ``clearclip`` ends with the attention's output projection."""
    mixed = merge_heads(mixed_values(block, block.before_attention(x), rotation, method))
    return block.project(mixed) if method == "clearclip" else block.finish(x, mixed)


def mixed_values(
    block: Block, x: Float[Tensor, "batch tokens width"], rotation: Rotation, method: OwnAttention
) -> Float[Tensor, "batch heads tokens head_width"]:
    """Values of all heads after the method's attention. Rows of SCLIP's attention sum to 2."""
    query, key, value = block.attention.qkv(x, rotation)
    match method:
        case "clip":
            probabilities = attention_probabilities(query, key)
        case "maskclip":
            return value
        case "sclip":
            probabilities = attention_probabilities(query, query) + attention_probabilities(key, key)
        case "clearclip":
            probabilities = attention_probabilities(query, query)
    return probabilities.to(value.dtype) @ value


def competing_queries(queries: Queries) -> Queries:
    """The queries that compete for a pixel: without the row for "anything"; background rows are one more class."""
    background = len(queries.rows) - 1 - len(queries.class_of_row)
    class_of_row = torch.cat([queries.class_of_row, queries.class_of_row.new_full((background,), queries.classes)])
    return replace(
        queries,
        rows=queries.rows[:-1],
        head_start=queries.head_start[:-1],
        class_of_row=class_of_row,
        classes=queries.classes + (background > 0),
    )


def most_probable(
    logits: Float[Tensor, "queries grid_h grid_w"],
    queries: Queries,
    classes: int,
    image_hw: tuple[int, int],
    barred: Sequence[int],
) -> tuple[Float[Tensor, "height width"], Integer[Tensor, "height width"]]:
    """The largest probability of a class at every pixel, and its label: 0 is background, c + 1 is class c.

    Logits are resized bilinearly before the softmax over all queries, block of rows by block, so that memory does not
    grow with queries times pixels. A class's probability is the largest of its queries'. Background is where a
    background query is more probable than every class that may win.

    Args:
        queries: as from `competing_queries`.
        classes: number of classes; class ``classes`` of ``queries`` is background.
        barred: classes (from 0) that may not win.
    """
    resized = ResizedMaps(logits, image_hw)
    labels = empty_labels(image_hw, classes, logits.device)
    value = logits.new_empty(image_hw)
    for rows in resized.blocks():
        maps = class_maps(resized.block(rows, list(range(len(logits)))).flatten(1)[None], queries)[0]
        maps.index_fill_(0, torch.tensor(barred, dtype=torch.int64, device=maps.device), -1)
        probability, winner = maps.max(dim=0)
        value[rows] = probability.view(-1, image_hw[1])
        labels[rows] = (winner + 1).masked_fill(winner == classes, 0).view(-1, image_hw[1])
    return value, labels
