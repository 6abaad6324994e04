"""The CLIP image tower, block by block: features of every block and the sum of the early attention maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from cliper.settings import Preset
from cliper.windows import Windows

PositionResizing = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class VisionTower:
    """An image tower and what its input must look like.

    Attributes:
        model: open_clip's vision transformer; its weights are only read.
        mean, std: per channel, of pixels in 0 to 1, that the tower was trained with.
        kernels: Triton kernels compute attention and labels; only in half precision on a GPU, after
            `cliper.selfcheck`.
    """

    model: VisionTransformer
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    kernels: bool = False

    @property
    def patch_size_px(self) -> int:
        return int(self.model.patch_size[0])

    @property
    def blocks(self) -> Sequence[ResidualAttentionBlock]:
        return list(self.model.transformer.resblocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.conv1.weight.device

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
    width = tower.model.proj.shape[1]
    if rows.shape[1] != width:
        raise ValueError(f"text embeddings have {rows.shape[1]} dimensions, the image tower has {width}")


def check_supported(model: nn.Module) -> VisionTransformer:
    """Refuse towers whose last block cannot be taken apart as the method needs.

    Raises:
        ValueError: not a plain open_clip vision transformer with a class token, square patches and standard attention.
    """
    plain = (
        isinstance(model, VisionTransformer)
        and model.attn_pool is None
        and not model.final_ln_after_pool
        and model.patch_size[0] == model.patch_size[1]
        and len(model.transformer.resblocks) > 1
        and all(
            isinstance(block, ResidualAttentionBlock) and isinstance(block.attn, nn.MultiheadAttention)
            for block in model.transformer.resblocks
        )
    )
    if not plain:
        raise ValueError("the image tower is not a plain open_clip vision transformer (such as ViT-B-16 or ViT-L-14)")
    return model


@dataclass(frozen=True)
class VisualTrace:
    """What the blocks before the last one leave behind.

    Attributes:
        features: one per feature k, each [batch, tokens, width], class token first. Preset ``release``: for k < N-1 the
            normalised input of block k (its ``ln_1`` applied), then the output of block N-2; preset ``paper``: the
            output of block k for k <= N-2.
        attention_sum: sum over blocks 0 to N-2 of the attention probabilities, in float32, from kernels in the tower's
            format; None if not asked for.
    """

    features: list[Float[Tensor, "batch tokens width"]]
    attention_sum: Float[Tensor, "batch heads tokens tokens"] | None


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
    For ``positions`` see `resize_positions`. With ``windows``, each goes through the blocks alone. Features, and the
    queries and keys that attention maps come from, are then put together to those of whole images.
    """
    pixels = pixels if windows is None else windows.crops(pixels)
    x = embed_patches(tower, pixels.to(tower.device, tower.dtype), positions)
    features = []
    early = None
    if keep_attention:
        flash = tower.kernels and windows is None
        early = FlashMaps(len(tower.blocks) - 1) if flash else PlainMaps(windows)
    for block in tower.blocks[:-1]:
        normalised = block.ln_1(x)
        if early is not None:
            mixed = early.mix(block.attn, normalised)
        else:
            query, key, value = project_qkv(block.attn, normalised)
            mixed = merge_heads(F.scaled_dot_product_attention(query, key, value))
        x = x + block.ls_1(block.attn.out_proj(mixed))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        features.append(normalised if preset != "paper" else x)
    if preset != "paper":
        features.append(x)
    if windows is not None:
        features = [windows.stitch(of) for of in features]
    return VisualTrace(features, early.total() if early is not None else None)


class PlainMaps:
    """Attention of block after block, and the sum of the maps.

    Args:
        windows: tokens mix within each; the maps are those between all patches of the windows.
    """

    def __init__(self, windows: Windows | None = None) -> None:
        self.windows = windows
        self.sum: Tensor | None = None

    def mix(
        self, attention: nn.MultiheadAttention, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """The block's values after its attention, of all heads."""
        query, key, value = project_qkv(attention, x)
        if self.windows is not None:
            mixed = merge_heads(F.scaled_dot_product_attention(query, key, value))
            query, key = (
                self.windows.stitch(merge_heads(of)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
                for of in (query, key)
            )
            self.add(attention_probabilities(query, key))
            return mixed
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


class FlashMaps:
    """The same with flash attention, which leaves no maps behind. Their sum is computed in the end, once, from queries,
    keys and the sums that normalised them."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.packed: Tensor | None = None
        self.normalisers: list[Tensor] = []

    def mix(
        self, attention: nn.MultiheadAttention, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """See `PlainMaps.mix`."""
        if self.packed is None:
            self.packed = x.new_empty(self.blocks, *x.shape[:2], 3 * x.shape[2])
        packed = self.packed[len(self.normalisers)]
        rows, weight = packed.view(-1, packed.shape[-1]), attention.in_proj_weight.T
        torch.addmm(attention.in_proj_bias, x.flatten(0, 1), weight, out=rows)
        query, key, value = packed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
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


def embed_patches(
    tower: VisionTower, pixels: Float[Tensor, "batch 3 input_height input_width"], resizing: PositionResizing
) -> Float[Tensor, "batch tokens width"]:
    """Patch embedding with the class token in front and positions resized to this image's grid."""
    model = tower.model
    patches = model.conv1(pixels)
    tokens = patches.flatten(2).transpose(1, 2)
    class_token = model.class_embedding.expand(len(tokens), 1, -1).to(tokens.dtype)
    positions = resize_positions(model.positional_embedding, model.grid_size, patches.shape[-2:], resizing)
    return model.ln_pre(torch.cat([class_token, tokens], dim=1) + positions.to(tokens.dtype))


def resize_positions(
    positions: Float[Tensor, "trained_tokens width"],
    trained_hw: tuple[int, int],
    grid_hw: tuple[int, int],
    resizing: PositionResizing,
) -> Float[Tensor, "tokens width"]:
    """Keep the class token's row; resize the grid's rows (align_corners=False) to another grid.

    ``bilinear`` is CLIPer's way. ``bicubic`` is that of DINO, SCLIP, ClearCLIP and ProxyCLIP: it samples as if the grid
    had a tenth of a row and of a column more.
    """
    if tuple(grid_hw) == trained_hw:
        return positions.float()
    grid = positions[1:].float().reshape(1, *trained_hw, -1).permute(0, 3, 1, 2)
    if resizing == "bicubic":
        factors = tuple((new + 0.1) / old for new, old in zip(grid_hw, trained_hw, strict=True))
        resized = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        resized = F.interpolate(grid, tuple(grid_hw), mode="bilinear", align_corners=False)
    return torch.cat([positions[:1].float(), resized.flatten(2)[0].T])


def project_qkv(
    attention: nn.MultiheadAttention, x: Float[Tensor, "batch tokens width"]
) -> tuple[Float[Tensor, "batch heads tokens head_width"], ...]:
    """Query, key and value of each head."""
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def project_value(
    attention: nn.MultiheadAttention, x: Float[Tensor, "batch tokens width"]
) -> Float[Tensor, "batch heads tokens head_width"]:
    """Value of each head alone."""
    return merged_value(attention, x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def merged_value(
    attention: nn.MultiheadAttention, x: Float[Tensor, "*batch tokens width"]
) -> Float[Tensor, "*batch tokens width"]:
    """Values of all heads, side by side."""
    width = attention.embed_dim
    return F.linear(x, attention.in_proj_weight[-width:], attention.in_proj_bias[-width:])


def attention_probabilities(
    query: Float[Tensor, "*heads tokens head_width"], key: Float[Tensor, "*heads tokens head_width"]
) -> Float[Tensor, "*heads tokens tokens"]:
    """softmax(q k^T / sqrt(d)) in float32; rows sum to 1."""
    scale = query.shape[-1] ** -0.5
    return torch.softmax((query * scale) @ key.transpose(-1, -2), dim=-1, dtype=torch.float32)


def merge_heads(x: Float[Tensor, "batch heads tokens head_width"]) -> Float[Tensor, "batch tokens width"]:
    return x.transpose(1, 2).flatten(2)
