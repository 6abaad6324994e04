"""What says which parts of an image belong together: queries and keys of self-attentions, on a grid.

There are three: Stable Diffusion (`cliper.diffusion.DiffusionModel`), CLIP's own early blocks, and vision transformers
of timm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from timm.models import VisionTransformerSAM
from torch import Tensor
from torch.nn import functional as F

from cliper.compensation import LayerQueriesAndKeys
from cliper.preprocess import InputSpec, Prepared
from cliper.segmenter import attention_bytes
from cliper.settings import MethodSettings
from cliper.stages import stage
from cliper.timm_models import TimmModel, last_queries_and_keys
from cliper.transfer import channels_first
from cliper.vision import VisionTower, merge_heads, normalize


class Attention(NamedTuple):
    """Queries and keys of a batch of images.

    Attributes:
        layers: of each self-attention, in the order in which heads are chained.
        grid_hw: positions are the cells of this grid, row after row.
    """

    layers: list[LayerQueriesAndKeys]
    grid_hw: tuple[int, int]


@runtime_checkable  # for tests, which check types at every call
class Affinity(Protocol):
    """Says which parts of an image belong together."""

    @property
    def heads(self) -> int:
        """Heads of all layers."""

    @property
    def is_compiled(self) -> bool:
        """True if batches of another size would be compiled again."""

    def inputs(self, clip: InputSpec, settings: MethodSettings) -> InputSpec:
        """How images are prepared for CLIP and for this."""

    def memory_bytes(self, image: Prepared) -> int:
        """Memory that an image takes beside the model and grows with it, about."""

    def attention(self, images: Sequence[Prepared], noise: Sequence[Tensor] | None = None) -> Attention:
        """Queries and keys.

        Args:
            images: prepared for this model; of one size.
            noise: for each image what a diffusion model takes in place of the seed's noise.
        """


def second_pixels(images: Sequence[Prepared], device: torch.device) -> UInt8[Tensor, "batch 3 height width"]:
    """What the second model reads of images that were prepared for it."""
    return channels_first([image.affinity for image in images if image.affinity is not None], device)


CLIP_DEPTHS = (1 / 3,)
"""Which blocks of CLIP, as shares of its depth: the fifth of twelve (docs/beyond.md)."""
MATRICES = 2
"""Matrices of all positions that `cliper.compensation.refine` holds at its peak."""


def clip_blocks(blocks: int) -> tuple[int, ...]:
    """The blocks at `CLIP_DEPTHS` of an image tower with so many blocks."""
    return tuple(int(depth * blocks) for depth in CLIP_DEPTHS)


def whole_image(clip: InputSpec, settings: MethodSettings, patch_size_px: int) -> InputSpec:
    """How images are prepared if the second model reads patches of this size."""
    return replace(clip, affinity_patch_size_px=patch_size_px, affinity_side_px=settings.second_side_px)


@dataclass(frozen=True)
class ClipAffinity:
    """Key-key attention of some blocks of CLIP's image tower, which see the image at another size than CLIP's own.

    Attributes:
        tower: its weights are shared.
        blocks: from 0, in the order in which their heads are chained.
    """

    tower: VisionTower
    blocks: tuple[int, ...]
    is_compiled = False

    @classmethod
    def of(cls, tower: VisionTower) -> "ClipAffinity":
        """That of the blocks at `CLIP_DEPTHS`."""
        return cls(tower, clip_blocks(len(tower.blocks)))

    @property
    def heads(self) -> int:
        return len(self.blocks) * self.tower.blocks[-1].heads

    def inputs(self, clip: InputSpec, settings: MethodSettings) -> InputSpec:
        """See `Affinity.inputs`."""
        return whole_image(clip, settings, self.tower.patch_size_px)

    def memory_bytes(self, image: Prepared) -> int:
        """See `Affinity.memory_bytes`."""
        return MATRICES * attention_bytes(image.affinity, self.tower.patch_size_px)

    def attention(self, images: Sequence[Prepared], noise: Sequence[Tensor] | None = None) -> Attention:
        """See `Affinity.attention`. Class and register tokens are dropped; positions are resized bilinearly."""
        tower, last, found = self.tower, max(self.blocks), {}
        with stage("preprocess"):
            pixels = tower.normalize(second_pixels(images, tower.device)).to(tower.dtype)
        with stage("affinity"):
            x, rotation = tower.parts.embed(pixels, "bilinear"), tower.rotation(pixels)
            for index, block in enumerate(tower.blocks[: last + 1]):
                query, key, value = block.attention.qkv(block.before_attention(x), rotation)
                found[index] = key[:, :, tower.prefix_tokens :]
                if index < last:
                    x = block.finish(x, merge_heads(F.scaled_dot_product_attention(query, key, value)))
        patch_size_px = tower.patch_size_px
        grid_hw = (pixels.shape[2] // patch_size_px, pixels.shape[3] // patch_size_px)
        return Attention([(found[block], found[block]) for block in self.blocks], grid_hw)


@dataclass(frozen=True)
class TimmAffinity:
    """The last self-attention of a vision transformer of timm; see `last_queries_and_keys`."""

    model: TimmModel
    heads: int
    is_compiled = False

    def inputs(self, clip: InputSpec, settings: MethodSettings) -> InputSpec:
        """See `Affinity.inputs`."""
        return whole_image(clip, settings, self.model.patch_size_px)

    def memory_bytes(self, image: Prepared) -> int:
        """See `Affinity.memory_bytes`. SAM adds a matrix for each head."""
        matrices = MATRICES + self.heads * isinstance(self.model.model, VisionTransformerSAM)
        return matrices * attention_bytes(image.affinity, self.model.patch_size_px)

    def attention(self, images: Sequence[Prepared], noise: Sequence[Tensor] | None = None) -> Attention:
        """See `Affinity.attention`."""
        model = self.model
        with stage("preprocess"):
            pixels = normalize(second_pixels(images, model.weight.device), model.statistics).to(model.weight.dtype)
        with stage("affinity"):
            layer = last_queries_and_keys(model.model, pixels)
        grid_hw = (pixels.shape[2] // model.patch_size_px, pixels.shape[3] // model.patch_size_px)
        return Attention([layer], grid_hw)
