"""The CLIP image tower, block by block: features of every block and the sum of the early attention maps.

What a block consists of and what follows the last one is in `cliper.towers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from cliper.settings import Preset
from cliper.towers import Block, PositionResizing, Rotation, SelfAttention, Tower, take_apart
from cliper.windows import Windows


@dataclass(frozen=True)
class VisionTower:
    """An image tower and what its input must look like.

    Attributes:
        model: open_clip's image tower; its weights are only read.
        mean, std: per channel, of pixels in 0 to 1, that the tower was trained with.
        kernels: Triton kernels compute attention and labels; only in half precision on a GPU, after
            `cliper.selfcheck`.

    Raises:
        ValueError: at the first use, the method's last block is not defined for the tower (`take_apart`).
    """

    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    kernels: bool = False

    @cached_property
    def parts(self) -> Tower:
        """See `cliper.towers.Tower`."""
        return take_apart(self.model)

    @property
    def patch_size_px(self) -> int:
        return self.parts.patch_size_px

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens in front of the patches."""
        return self.parts.prefix_tokens

    @property
    def blocks(self) -> Sequence[Block]:
        return self.parts.blocks

    def rotation(self, pixels: Float[Tensor, "batch 3 input_height input_width"]) -> Rotation:
        """Of the queries and keys of images of this size."""
        return self.parts.rotation((pixels.shape[-2] // self.patch_size_px, pixels.shape[-1] // self.patch_size_px))

    @property
    def dimensions(self) -> int:
        """Of the text embeddings' space."""
        return self.parts.dimensions

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.parts.weight.device

    @cached_property
    def statistics(self) -> Float[Tensor, "2 3 1 1"]:
        """See `channel_statistics`."""
        return channel_statistics(self.mean, self.std, self.device)

    def normalize(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """See `normalize`."""
        return normalize(pixels, self.statistics)


def channel_statistics(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> Float[Tensor, "2 3 1 1"]:
    """Mean and standard deviation of each channel, on the device. To be kept: building them there is a transfer."""
    return torch.tensor([mean, std], device=device)[..., None, None]


def normalize(
    pixels: UInt8[Tensor, "batch 3 height width"], statistics: Float[Tensor, "2 3 1 1"]
) -> Float[Tensor, "batch 3 height width"]:
    """Pixels in 0 to 1, less the mean, over the standard deviation of each channel (`channel_statistics`)."""
    mean, std = statistics
    return (pixels / 255 - mean) / std


def check_width(tower: VisionTower, rows: Float[Tensor, "queries dimensions"]) -> None:
    """Raises ValueError: text embeddings of another width than the tower's."""
    if rows.shape[1] != tower.dimensions:
        raise ValueError(f"text embeddings have {rows.shape[1]} dimensions, the image tower has {tower.dimensions}")


@dataclass(frozen=True)
class VisualTrace:
    """What the blocks before the last one leave behind.

    Attributes:
        features: one per feature k, each [batch, tokens, width], prefix tokens first. Preset ``release``: for k < N-1
            the input of block k's attention (with its norm, if that comes before), then the output of block N-2; preset
            ``paper``: the output of block k for k <= N-2.
        attention_sum: sum over blocks 0 to N-2 of the attention probabilities, in float32, from kernels in the tower's
            format; None if not asked for.
        rotation: of the last block's queries and keys, see `cliper.towers.Rotation`.
    """

    features: list[Float[Tensor, "batch tokens width"]]
    attention_sum: Float[Tensor, "batch heads tokens tokens"] | None
    rotation: Rotation


def trace(
    tower: VisionTower,
    pixels: Float[Tensor, "batch 3 input_height input_width"],
    preset: Preset,
    keep_attention: bool,
    positions: PositionResizing = "bilinear",
    windows: Windows | None = None,
) -> VisualTrace:
    """Run blocks 0 to N-2 and keep what the last block needs (CLIPer section 3.2; early layers).

    Pixels are normalised; their sides are multiples of the patch size. Attention maps are summed if ``keep_attention``.
    For ``positions`` see `cliper.towers.resize_positions`. With ``windows``, each goes through the blocks alone. The
    features, from which attention maps come too, are then put together to those of whole images.
    """
    whole_rotation = tower.rotation(pixels)
    pixels = pixels if windows is None else windows.crops(pixels)
    x = tower.parts.embed(pixels.to(tower.device, tower.dtype), positions)
    rotation = whole_rotation if windows is None else tower.rotation(pixels)
    features = []
    early: PlainMaps | FlashMaps | None = None
    if keep_attention:
        if windows is not None:
            early = StitchedMaps(windows, whole_rotation)
        else:
            early = FlashMaps(len(tower.blocks) - 1) if tower.kernels else PlainMaps()
    for block in tower.blocks[:-1]:
        normalised = block.before_attention(x)
        if early is not None:
            mixed = early.mix(block.attention, normalised, rotation)
        else:
            query, key, value = block.attention.qkv(normalised, rotation)
            mixed = merge_heads(F.scaled_dot_product_attention(query, key, value))
        x = block.finish(x, mixed)
        features.append(normalised if preset != "paper" else x)
    if preset != "paper":
        features.append(x)
    if windows is not None:
        features = [windows.stitch(of) for of in features]
    return VisualTrace(features, early.total() if early is not None else None, whole_rotation)


class PlainMaps:
    """Attention of block after block, and the sum of the maps."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None

    def mix(
        self, attention: SelfAttention, x: Float[Tensor, "batch tokens width"], rotation: Rotation = None
    ) -> Float[Tensor, "batch tokens width"]:
        """The block's values after its attention, of all heads."""
        query, key, value = attention.qkv(x, rotation)
        probabilities = attention_probabilities(query, key)
        self.add(probabilities)
        return merge_heads(probabilities.to(value.dtype) @ value)

    def add(self, probabilities: Float[Tensor, "batch heads tokens tokens"]) -> None:
        """One more map."""
        self.sum = probabilities if self.sum is None else self.sum + probabilities

    def total(self) -> Float[Tensor, "batch heads tokens tokens"]:
        """The sum of the maps so far, in float32."""
        assert self.sum is not None, "a tower has more than one block"
        return self.sum


class StitchedMaps(PlainMaps):
    """The same for windows: tokens mix within each window, and the maps are those between all patches of an image.

    Args:
        rotation: of queries and keys of whole images.
    """

    def __init__(self, windows: Windows, rotation: Rotation) -> None:
        super().__init__()
        self.windows, self.rotation = windows, rotation

    def mix(
        self, attention: SelfAttention, x: Float[Tensor, "batch tokens width"], rotation: Rotation = None
    ) -> Float[Tensor, "batch tokens width"]:
        """See `PlainMaps.mix`."""
        query, key, _ = attention.qkv(self.windows.stitch(x), self.rotation)
        self.add(attention_probabilities(query, key))
        query, key, value = attention.qkv(x, rotation)
        return merge_heads(F.scaled_dot_product_attention(query, key, value))


class FlashMaps:
    """The same with flash attention, which leaves no maps behind. Their sum is computed in the end, once, from queries,
    keys and the sums that normalised them."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.packed: Tensor | None = None
        self.normalisers: list[Tensor] = []

    def mix(
        self, attention: SelfAttention, x: Float[Tensor, "batch tokens width"], rotation: Rotation = None
    ) -> Float[Tensor, "batch tokens width"]:
        """See `PlainMaps.mix`."""
        if self.packed is None:
            self.packed = x.new_empty(self.blocks, *x.shape[:2], 3 * x.shape[2])
        packed = self.packed[len(self.normalisers)]
        attention.pack(x, rotation, packed)
        query, key, value = packed.unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        if not x.is_cuda:  # with Triton's interpreter
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mixed, normaliser = flash(query, key, value)[:2]
        self.normalisers.append(normaliser)
        return merge_heads(mixed)

    def total(self) -> Float[Tensor, "batch heads tokens tokens"]:
        """See `PlainMaps.total`; in the tower's format."""
        from cliper import attention_kernels  # Triton is only there where torch knows CUDA

        return attention_kernels.early_sum(self.packed, torch.stack(self.normalisers))


def attention_probabilities(
    query: Float[Tensor, "*heads tokens head_width"], key: Float[Tensor, "*heads tokens head_width"]
) -> Float[Tensor, "*heads tokens tokens"]:
    """softmax(q k^T / sqrt(d)) in float32; rows sum to 1."""
    scale = query.shape[-1] ** -0.5
    return torch.softmax((query * scale) @ key.transpose(-1, -2), dim=-1, dtype=torch.float32)


def split_heads(x: Float[Tensor, "batch tokens width"], heads: int) -> Float[Tensor, "batch heads tokens head_width"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Float[Tensor, "batch heads tokens head_width"]) -> Float[Tensor, "batch tokens width"]:
    return x.transpose(1, 2).flatten(2)
