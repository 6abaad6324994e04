"""CLIP's image towers taken apart, one interface for all: open_clip's plain transformer, and timm's for SigLIP, EVA and
Perception Encoder.

The method replaces the attention of the last block. For that a tower must say what its blocks consist of and what
follows the last attention. The dense feature of a token is the pooled output that the tower would have for this token
alone. The value after the replaced attention goes through all that the attention's branch of the block has (output
projection, inner norms, layer scale), the final norm, the pooling head and the projection to the text space. Neither
residual nor MLP of the block takes part. Attention over a single token is that token's value, so an attention-pooling
head (SigLIP, Perception Encoder) applies its value projection, its output projection, and its MLP with its residual.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenClipTransformer
from timm.layers import Attention, AttentionPoolLatent, AttentionRope, RotaryEmbeddingCat, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn
from torch.nn import functional as F

PositionResizing = Literal["bilinear", "bicubic"]
Rotation = Float[Tensor, "patches twice_head_width"] | None
"""Sines and cosines by which a tower turns queries and keys of patches, for one grid; None for other towers."""
Part = Callable[[Tensor], Tensor]
PLAIN_TOWERS = "such as ViT-B-16, ViT-B-16-SigLIP2:webli, EVA02-B-16:merged2b_s8b_b131k or PE-Core-B-16:meta"


@runtime_checkable
class SelfAttention(Protocol):
    """The attention of a block, without what is before and after it.

    Attributes:
        heads: number of heads.
    """

    heads: int

    def qkv(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, ...]:
        """Query, key and value, each [batch, heads, tokens, head width]; their logits are ``q k^T / sqrt(d)``."""

    def pack(self, x: Tensor, rotation: Rotation, packed: Tensor) -> None:
        """Write queries, keys and values of all heads side by side into ``packed`` [batch, tokens, 3 * width]."""

    def value(self, x: Tensor) -> Tensor:
        """Values of all heads, side by side: [*batch, tokens, width]."""

    def project(self, mixed: Tensor) -> Tensor:
        """From values after attention, heads side by side, to the width of the tower; with inner norms."""


@dataclass(frozen=True)
class Block:
    """A block: ``x + after_attention(attention(before_attention(x)))``, and the same with the MLP.

    Before are the norms of pre-norm blocks; after are layer scales, or the norms of post-norm blocks (EVA02-E).
    """

    attention: SelfAttention
    before_attention: Part
    after_attention: Part
    before_mlp: Part
    mlp: Part
    after_mlp: Part

    @property
    def heads(self) -> int:
        return self.attention.heads

    def project(self, mixed: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens width"]:
        """What the block adds to its input for values after attention: all of the branch that comes after them."""
        return self.after_attention(self.attention.project(mixed))

    def finish(
        self, x: Float[Tensor, "batch tokens width"], mixed: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """The block's output, from its input and the values after attention."""
        x = x + self.project(mixed)
        return x + self.after_mlp(self.mlp(self.before_mlp(x)))


@runtime_checkable
class Tower(Protocol):
    """An image tower taken apart.

    Attributes:
        blocks: in order.
        prefix_tokens: class and register tokens in front of the patches.
        patch_size_px: side of a patch.
        dimensions: of the text space.
        weight: of the patch embedding, whose device and number format the tower has.
    """

    blocks: Sequence[Block]
    prefix_tokens: int
    patch_size_px: int
    dimensions: int
    weight: Tensor

    def embed(self, pixels: Tensor, resizing: PositionResizing) -> Tensor:
        """Tokens before the first block, prefix first, with positions for this image's grid."""

    def rotation(self, grid_hw: tuple[int, int]) -> Rotation:
        """For queries and keys of patches on a grid."""

    def project(self, tokens: Tensor) -> Tensor:
        """Each token by itself to the text space: final norm, pooling head over this token alone, projection."""


def take_apart(model: nn.Module) -> Tower:
    """Take an image tower of open_clip apart.

    Raises:
        ValueError: the method's last block is not defined for it. The message says why, beginning with a verb.
    """
    if isinstance(model, OpenClipTransformer):
        return OpenClipTower(model)
    if isinstance(model, TimmModel) and isinstance(model.trunk, TimmTransformer | Eva):
        return TimmTower(model)
    raise ValueError(f"has no plain vision transformer: use one {PLAIN_TOWERS}")


class PackedAttention:
    """Torch's own attention, as open_clip's transformers have it."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        self.attention, self.heads = attention, attention.num_heads

    def qkv(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation = None) -> tuple[Tensor, ...]:
        projected = F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def pack(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, packed: Tensor) -> None:
        rows, weight = packed.view(-1, packed.shape[-1]), self.attention.in_proj_weight.T
        torch.addmm(self.attention.in_proj_bias, x.flatten(0, 1), weight, out=rows)

    def value(self, x: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens width"]:
        width = self.attention.embed_dim
        return F.linear(x, self.attention.in_proj_weight[-width:], self.attention.in_proj_bias[-width:])

    def project(self, mixed: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens width"]:
        return self.attention.out_proj(mixed)


class TimmAttention:
    """Attention of timm's transformers: projections together or apart, norms of queries and keys, rotary positions, and
    a norm before the output projection."""

    def __init__(self, attention: Any) -> None:
        known = type(attention) in (Attention, AttentionRope, EvaAttention)
        if not known or attention.gate is not None:
            raise ValueError(f"has another attention than the method takes apart ({type(attention).__name__})")
        self.attention: Any = attention
        self.heads: int = attention.num_heads
        self.width: int = attention.proj.in_features
        if self.width != attention.proj.out_features or getattr(attention, "num_kv_heads", self.heads) != self.heads:
            raise ValueError("has keys and values of another width than its tokens")

    @cached_property
    def together(self) -> tuple[Tensor, Tensor | None]:
        """Weights and biases of queries, keys and values, one after the other."""
        attention = self.attention
        if attention.qkv is None:
            layers = (attention.q_proj, attention.k_proj, attention.v_proj)
            weight, biases = torch.cat([layer.weight for layer in layers]), [layer.bias for layer in layers]
        elif isinstance(attention, EvaAttention):
            weight, biases = attention.qkv.weight, [attention.q_bias, None, attention.v_bias]
        else:
            return attention.qkv.weight, attention.qkv.bias
        if biases[0] is None:
            return weight, None
        without = torch.zeros_like(biases[0])  # EVA's keys have none
        return weight, torch.cat([without if bias is None else bias for bias in biases])

    def qkv(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation) -> tuple[Tensor, ...]:
        projected = F.linear(x, *self.together).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        query, key = self.attention.q_norm(query), self.attention.k_norm(key)
        if rotation is not None:
            query, key = self.turned(query, rotation), self.turned(key, rotation)
        return query.to(value.dtype), key.to(value.dtype), value

    def turned(self, x: Float[Tensor, "batch heads tokens head_width"], rotation: Tensor) -> Tensor:
        """With rotary positions; prefix tokens have none."""
        prefix = x.shape[2] - len(rotation)
        patches = apply_rot_embed_cat(x[:, :, prefix:], rotation, half=self.attention.rotate_half)
        return torch.cat([x[:, :, :prefix], patches.to(x.dtype)], dim=2)

    def pack(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, packed: Tensor) -> None:
        heads = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        for part, values in zip(heads, self.qkv(x, rotation), strict=True):
            part.copy_(values)

    def value(self, x: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens width"]:
        weight, bias = self.together
        return F.linear(x, weight[2 * self.width :], None if bias is None else bias[2 * self.width :])

    def project(self, mixed: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens width"]:
        return self.attention.proj(self.attention.norm(mixed))


class OpenClipTower:
    """open_clip's plain vision transformer."""

    prefix_tokens = 1

    def __init__(self, model: OpenClipTransformer) -> None:
        if model.attn_pool is not None or model.final_ln_after_pool:
            raise ValueError("pools its patches in a way that leaves no dense features")
        if model.patch_size[0] != model.patch_size[1]:
            raise ValueError("has patches that are no squares")
        blocks = list(model.transformer.resblocks)
        check_blocks(len(blocks))
        self.model = model
        self.blocks: Sequence[Block] = [open_clip_block(block) for block in blocks]
        self.patch_size_px, self.dimensions = int(model.patch_size[0]), model.proj.shape[1]
        self.weight = model.conv1.weight

    def embed(
        self, pixels: Float[Tensor, "batch 3 input_height input_width"], resizing: PositionResizing
    ) -> Float[Tensor, "batch tokens width"]:
        model = self.model
        patches = model.conv1(pixels)
        tokens = patches.flatten(2).transpose(1, 2)
        class_token = model.class_embedding.expand(len(tokens), 1, -1).to(tokens.dtype)
        positions = resize_positions(model.positional_embedding, model.grid_size, patches.shape[-2:], resizing)
        return model.ln_pre(torch.cat([class_token, tokens], dim=1) + positions.to(tokens.dtype))

    def rotation(self, grid_hw: tuple[int, int]) -> Rotation:
        return None

    def project(self, tokens: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens dimensions"]:
        return self.model.ln_post(tokens) @ self.model.proj


def open_clip_block(block: nn.Module) -> Block:
    """Raises ValueError: not open_clip's standard block."""
    if not isinstance(block, ResidualAttentionBlock) or not isinstance(block.attn, nn.MultiheadAttention):
        raise ValueError("has blocks of another kind than open_clip's standard one")
    return Block(PackedAttention(block.attn), block.ln_1, block.ls_1, block.ln_2, block.mlp, block.ls_2)


class TimmTower:
    """timm's plain transformers over patches as image towers of open_clip: SigLIP, EVA, Perception Encoder."""

    def __init__(self, model: TimmModel) -> None:
        self.model, trunk = model, cast(Any, model.trunk)
        height, width = trunk.patch_embed.patch_size
        if height != width:
            raise ValueError("has patches that are no squares")
        check_blocks(len(trunk.blocks))
        if trunk.global_pool not in ("token", "map"):
            raise ValueError(
                f"pools its patches in a way that leaves no dense features ({trunk.global_pool or 'none'})"
            )
        if trunk.attn_pool is not None and not one_latent(trunk.attn_pool):
            raise ValueError("has another attention-pooling head than one with a single query")
        rope = getattr(trunk, "rope", None)
        if rope is not None and type(rope) is not RotaryEmbeddingCat:
            raise ValueError(f"has rotary positions of another kind ({type(rope).__name__})")
        self.blocks: Sequence[Block] = [timm_block(block) for block in trunk.blocks]
        self.prefix_tokens, self.patch_size_px = trunk.num_prefix_tokens, int(height)
        projections = [layer for layer in (trunk.head, *model.head.modules()) if isinstance(layer, nn.Linear)]
        self.dimensions = projections[-1].out_features if projections else trunk.embed_dim
        self.weight, self.rope = trunk.patch_embed.proj.weight, rope

    def embed(
        self, pixels: Float[Tensor, "batch 3 input_height input_width"], resizing: PositionResizing
    ) -> Float[Tensor, "batch tokens width"]:
        trunk = cast(Any, self.model.trunk)
        patches = trunk.patch_embed.proj(pixels)
        x = trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        tokens = [token for token in (trunk.cls_token, trunk.reg_token) if token is not None]
        first = [token.expand(len(x), -1, -1).to(x.dtype) for token in tokens]
        if trunk.pos_embed is None:
            return trunk.norm_pre(torch.cat([*first, x], dim=1))
        with_own = 0 if trunk.no_embed_class else self.prefix_tokens  # prefix tokens that have positions
        trained_hw, grid_hw = tuple(trunk.patch_embed.grid_size), patches.shape[-2:]
        positions = resize_positions(trunk.pos_embed[0], trained_hw, grid_hw, resizing, with_own).to(x.dtype)
        if trunk.no_embed_class:
            return trunk.norm_pre(torch.cat([*first, x + positions], dim=1))
        return trunk.norm_pre(torch.cat([*first, x], dim=1) + positions)

    def rotation(self, grid_hw: tuple[int, int]) -> Rotation:
        """As timm computes it for inputs of any size: the trained grid's coordinates are stretched over this one."""
        return None if self.rope is None else self.any_grid.get_embed(list(grid_hw))

    @cached_property
    def any_grid(self) -> RotaryEmbeddingCat:
        """The tower's rotary positions, free of the grid that the tower was built for."""
        same = ("dim", "max_res", "temperature", "in_pixels", "linear_bands", "ref_feat_shape", "grid_offset")
        also = ("grid_indexing", "rotate_half", "grid_type", "normalize_coords")
        free = RotaryEmbeddingCat(**{name: getattr(self.rope, name) for name in (*same, *also)})
        return free.to(self.weight.device).eval()

    def project(self, tokens: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens dimensions"]:
        trunk = cast(Any, self.model.trunk)
        x = trunk.norm(tokens)
        if trunk.attn_pool is not None:
            x = pooled_alone(trunk.attn_pool, x)
        return self.model.head(trunk.head(trunk.fc_norm(x)))


def timm_block(block: Any) -> Block:
    """Raises ValueError: none of timm's blocks that the method takes apart."""
    nothing = nn.Identity()
    if type(block) is EvaBlockPostNorm:
        return Block(TimmAttention(block.attn), nothing, block.norm1, nothing, block.mlp, block.norm2)
    if type(block) is EvaBlock:
        scales = [nothing if gamma is None else gamma.mul for gamma in (block.gamma_1, block.gamma_2)]
        return Block(TimmAttention(block.attn), block.norm1, scales[0], block.norm2, block.mlp, scales[1])
    if type(block) is TimmBlock:
        return Block(TimmAttention(block.attn), block.norm1, block.ls1, block.norm2, block.mlp, block.ls2)
    raise ValueError(f"has blocks of another kind than the method takes apart ({type(block).__name__})")


def check_blocks(blocks: int) -> None:
    """Raises ValueError: there is no block before the last one."""
    if blocks < 2:
        raise ValueError("has a single block: the method needs early ones")


def one_latent(pool: nn.Module) -> bool:
    """Whether a pooling head has a single query, so that its output for a single token is defined without it."""
    return type(pool) is AttentionPoolLatent and pool.latent_len == 1 and pool.pos_embed is None


def pooled_alone(
    pool: AttentionPoolLatent, x: Float[Tensor, "*batch tokens width"]
) -> Float[Tensor, "*batch tokens width"]:
    """The head's output for each token as the only one: attention gives it all weight, whatever query and key are."""
    width = pool.proj.in_features
    x = pool.proj(F.linear(x, pool.kv.weight[width:], None if pool.kv.bias is None else pool.kv.bias[width:]))
    return x + pool.mlp(pool.norm(x))


def resize_positions(
    positions: Float[Tensor, "trained_tokens width"],
    trained_hw: tuple[int, int],
    grid_hw: tuple[int, int],
    resizing: PositionResizing,
    prefix_tokens: int = 1,
) -> Float[Tensor, "tokens width"]:
    """Keep the rows of class and register tokens; resize the grid's rows (align_corners=False) to another grid.

    ``bilinear`` is CLIPer's way. ``bicubic`` is that of DINO, SCLIP, ClearCLIP and ProxyCLIP: it samples as if the grid
    had a tenth of a row and of a column more.
    """
    if tuple(grid_hw) == trained_hw:
        return positions.float()
    grid = positions[prefix_tokens:].float().reshape(1, *trained_hw, -1).permute(0, 3, 1, 2)
    if resizing == "bicubic":
        factors = tuple((new + 0.1) / old for new, old in zip(grid_hw, trained_hw, strict=True))
        resized = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        resized = F.interpolate(grid, tuple(grid_hw), mode="bilinear", align_corners=False)
    return torch.cat([positions[:prefix_tokens].float(), resized.flatten(2)[0].T])
