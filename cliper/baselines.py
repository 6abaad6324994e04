"""Open-vocabulary segmentation by other training-free methods, to compare CLIPer with: same models, same vocabulary.

They differ in CLIP's last block alone. All are read out as SCLIP and ProxyCLIP do: softmax over the queries at the
picture's own size, and the class of the most probable query wins.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int32
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from cliper.coarse import Queries, class_maps, query_logits
from cliper.pipeline import ImageArray
from cliper.preprocess import clip_input, patch_grid_hw
from cliper.proxy import ProxyModel, mix_by_proxy
from cliper.vision import (
    VisionTower,
    attention_probabilities,
    merge_heads,
    project_qkv,
    trace,
)

BaselineMethod = Literal["clip", "maskclip", "sclip", "clearclip", "proxyclip"]
OwnAttention = Literal["clip", "maskclip", "sclip", "clearclip"]
"""Methods whose attention comes from CLIP itself."""

VALUES_AT_ONCE = 2**24
"""Image rows are labelled together as long as their query logits are no more numbers than this (64 MiB)."""


@dataclass(frozen=True)
class BaselineSettings:
    """What can be set about the baselines; the defaults are SCLIP's and ProxyCLIP's.

    Attributes:
        shorter_side_px: shorter side of the CLIP input.
        logit_scale: factor on the cosine similarities before the softmax over queries.
        background_threshold: a pixel is background where no class is at least this probable; 0 to 1.

    Raises:
        ValueError: a value is out of its range.
    """

    shorter_side_px: int = 336
    logit_scale: float = 40.0
    background_threshold: float = 0.0

    def __post_init__(self) -> None:
        ranges = {"shorter_side_px": (1, 8192), "logit_scale": (0.0, 1e4), "background_threshold": (0.0, 1.0)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, not {value}")


@dataclass(frozen=True)
class Prediction:
    """What a baseline finds in one picture, on the CPU.

    Attributes:
        scores: image-level class scores: each class's largest probability on the patch grid, 0 to 1.
        labels: 0 is background, c + 1 is class c, at the picture's own size.
    """

    scores: Float[Tensor, " classes"]
    labels: Int32[Tensor, "height width"]


class Baseline:
    """A training-free method that changes CLIP's last block only.

    * ``clip``: nothing is changed.
    * ``maskclip`` (Zhou et al. 2022, arXiv 2112.01071), as released for vision transformers: every token attends to
      itself alone; residual and MLP stay.
    * ``sclip`` (Wang et al. 2023, arXiv 2312.01597): the sum of query-query and key-key attention; both stay.
    * ``clearclip`` (Lan et al. 2024, arXiv 2407.12442): query-query attention, neither residual nor MLP.
    * ``proxyclip`` (Lan et al. 2024, arXiv 2408.04883): another model's attention (`cliper.proxy`), likewise.

    Args:
        tower: CLIP's image tower.
        queries: text embeddings of the vocabulary. Their last row, CLIPer's query for "anything", takes no part.
        method: the method.
        settings: input size and readout.
        proxy: needed for ``proxyclip``, on the tower's device; not used otherwise.

    Raises:
        ValueError: ``proxyclip`` without a proxy, or text embeddings of another width than the tower's.
    """

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
        width = tower.model.proj.shape[1]
        if queries.rows.shape[1] != width:
            raise ValueError(f"text embeddings have {queries.rows.shape[1]} dimensions, the image tower has {width}")
        self.tower, self.method, self.settings, self.proxy = tower, method, settings, proxy
        self.classes = queries.classes
        self.queries = competing_queries(queries.to(tower.device))

    @property
    def largest_batch(self) -> int:
        """Most pictures that should go together, as for `cliper.pipeline.Cliper`; each is worked on alone anyway."""
        return sys.maxsize if self.tower.device.type == "cuda" else 1

    @torch.inference_mode()
    def annotate(
        self,
        images: Sequence[ImageArray],
        seeds: Sequence[int],
        allowed: Sequence[Collection[int] | None] | None = None,
    ) -> list[Prediction]:
        """Label pictures of any sizes; each result depends on its own picture alone.

        Args:
            images: RGB pictures.
            seeds: not used, since nothing here is random; there so that `Cliper.annotate` is called in the same way.
            allowed: per picture the classes (from 0) that may win, or None for all.
        """
        return [self.predict(image, allowed[i] if allowed else None) for i, image in enumerate(images)]

    def predict(self, image: ImageArray, allowed: Collection[int] | None) -> Prediction:
        logits = self.logits(image)
        maps = class_maps(logits.flatten(1)[None], self.queries)[0, : self.classes]
        barred = [] if allowed is None else [index for index in range(self.classes) if index not in allowed]
        labels = label_pixels(
            logits, self.queries, self.classes, image.shape[:2], self.settings.background_threshold, barred
        )
        return Prediction(maps.amax(dim=-1).cpu(), labels.cpu())

    def logits(self, image: ImageArray) -> Float[Tensor, "queries grid_h grid_w"]:
        """Scaled cosine similarity of patches and queries, on CLIP's patch grid, for ``proxyclip`` on the proxy's."""
        tower = self.tower
        grid_hw = patch_grid_hw(image.shape[:2], self.settings.shorter_side_px, tower.patch_size_px)
        pixels = clip_input(image, grid_hw, tower.patch_size_px, tower.mean, tower.std)
        x = trace(tower, pixels[None], "release", keep_attention=False).features[-1]
        last = tower.blocks[-1]
        if self.method == "proxyclip":
            assert self.proxy is not None, "checked in the constructor"
            features = self.proxy.features(image, (pixels.shape[1], pixels.shape[2]))
            patches = mix_by_proxy(last.attn, last.ln_1(x), grid_hw, features)
            grid_hw = (features.shape[0], features.shape[1])
        else:
            patches = last_block(last, x, self.method)[:, 1:]
        dense = (tower.model.ln_post(patches) @ tower.model.proj).float()
        return query_logits(dense, self.queries, self.settings.logit_scale)[0].unflatten(-1, grid_hw)


def last_block(
    block: ResidualAttentionBlock, x: Float[Tensor, "batch tokens width"], method: OwnAttention
) -> Float[Tensor, "batch tokens width"]:
    """CLIP's last block with the method's attention; ``clearclip`` ends with the attention's output projection."""
    mixed = block.attn.out_proj(merge_heads(mixed_values(block.attn, block.ln_1(x), method)))
    if method == "clearclip":
        return mixed
    x = x + block.ls_1(mixed)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def mixed_values(
    attention: nn.MultiheadAttention, x: Float[Tensor, "batch tokens width"], method: OwnAttention
) -> Float[Tensor, "batch heads tokens head_width"]:
    """Values of all heads after the method's attention. Rows of SCLIP's attention sum to 2."""
    query, key, value = project_qkv(attention, x)
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
    return Queries(queries.rows[:-1], class_of_row, queries.classes + (background > 0))


def label_pixels(
    logits: Float[Tensor, "queries grid_h grid_w"],
    queries: Queries,
    classes: int,
    image_hw: tuple[int, int],
    background_threshold: float,
    barred: Sequence[int],
) -> Int32[Tensor, "height width"]:
    """The class of every pixel: 0 is background, c + 1 is class c.

    Logits are resized bilinearly before the softmax over all queries; rows of pixels are taken some at a time, so that
    memory does not grow with queries times pixels. A class's probability is the largest of its queries'. Background is
    where a background query is more probable than every class that may win, or where none of these reaches the
    threshold.

    Args:
        logits: on the patch grid.
        queries: as from `competing_queries`.
        classes: number of classes; class ``classes`` of ``queries`` is background.
        image_hw: height and width of the picture.
        background_threshold: 0 to 1.
        barred: classes (from 0) that may not win.
    """
    height, width = image_hw
    one_hot = torch.eye(logits.shape[1], device=logits.device)
    weights = F.interpolate(one_hot[None], height, mode="linear", align_corners=False)[0].T  # height, grid_h
    labels = []
    for some in weights.split(max(1, VALUES_AT_ONCE // (len(logits) * width))):
        rows = torch.einsum("yg,qgx->qyx", some, logits)
        resized = F.interpolate(rows, width, mode="linear", align_corners=False)
        maps = class_maps(resized.flatten(1)[None], queries)[0]
        maps.index_fill_(0, torch.tensor(barred, dtype=torch.int64, device=maps.device), -1)
        probability, winner = maps.max(dim=0)
        background = (winner == classes) | (probability < background_threshold)
        labels.append((winner + 1).int().masked_fill(background, 0))
    return torch.cat(labels).view(image_hw)
