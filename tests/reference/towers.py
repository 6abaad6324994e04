"""The dense features of timm's image towers, transcribed literally from raw weights: one image, one step at a time.

It shares no code with the package nor with timm. Which parts a tower has is read off the names of its weights.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tests.reference.literal import scaled, symmetric


@dataclass
class TimmWeights:
    """An image tower as plain tensors.

    Attributes:
        rotation: the grid that rotary positions were trained for, what is added to coordinates, and whether columns
            come first; None without.
    """

    tensors: dict[str, torch.Tensor]
    layers: int
    heads: int
    patch: int
    trained_grid: int
    eps: float
    rotation: tuple[int, float, bool] | None

    @classmethod
    def of(cls, model: Any) -> "TimmWeights":
        """Those of open_clip's ``TimmModel``."""
        trunk, rope = model.trunk, getattr(model.trunk, "rope", None)
        return cls(
            tensors={name.removeprefix("trunk."): tensor.clone() for name, tensor in model.state_dict().items()},
            layers=len(trunk.blocks),
            heads=trunk.blocks[0].attn.num_heads,
            patch=trunk.patch_embed.patch_size[0],
            trained_grid=trunk.patch_embed.grid_size[0],
            eps=trunk.norm.eps,
            rotation=rope and (rope.ref_feat_shape[0], rope.grid_offset, rope.grid_indexing == "xy"),
        )

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Layer norm; nothing where the tower has none."""
        if f"{name}.weight" not in self.tensors:
            return x
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + self.eps).sqrt() * weight + bias

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        return y + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

    def scale(self, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        for name in names:
            x = x * self.tensors.get(name, torch.ones(()))
        return x

    def heads_of(self, name: str, part: int, x: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
        """Queries (part 0), keys (1) or values (2) of a block's attention: [heads, tokens, head width]."""
        w, width, letter = self.tensors, x.shape[-1], "qkv"[part]
        if f"{name}.qkv.weight" in w:
            rows = slice(part * width, (part + 1) * width)
            y = x @ w[f"{name}.qkv.weight"][rows].T
            if f"{name}.qkv.bias" in w:
                y = y + w[f"{name}.qkv.bias"][rows]
            elif f"{name}.{letter}_bias" in w:
                y = y + w[f"{name}.{letter}_bias"]
        else:
            y = self.linear(f"{name}.{letter}_proj", x)
        y = y.reshape(len(x), self.heads, -1).permute(1, 0, 2)
        if part == 2:
            return y
        return self.rotated(self.norm(f"{name}.{letter}_norm", y), grid_hw)

    def rotated(self, x: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
        """Patch by patch and pair by pair of entries: the first half of the pairs turns by one coordinate, the second
        by the other, each pair by another frequency."""
        if self.rotation is None:
            return x
        trained, offset, columns_first = self.rotation
        x, pairs = x.clone(), x.shape[-1] // 2
        prefix = x.shape[1] - grid_hw[0] * grid_hw[1]
        for row in range(grid_hw[0]):
            for column in range(grid_hw[1]):
                at = [(row + offset) / grid_hw[0] * trained, (column + offset) / grid_hw[1] * trained]
                if columns_first:
                    at.reverse()
                token = prefix + row * grid_hw[1] + column
                for pair in range(pairs):
                    axis, band = divmod(pair, pairs // 2)
                    angle = torch.tensor(at[axis] * 10000 ** -(band / (pairs // 2)))
                    a, b = x[:, token, 2 * pair].clone(), x[:, token, 2 * pair + 1].clone()
                    x[:, token, 2 * pair] = a * angle.cos() - b * angle.sin()
                    x[:, token, 2 * pair + 1] = b * angle.cos() + a * angle.sin()
        return x


def embedded(clip: TimmWeights, pixels: torch.Tensor) -> tuple[torch.Tensor, int, tuple[int, int]]:
    """Tokens before the first block, how many of them are no patches, and the grid of the patches."""
    w = clip.tensors
    patches = F.conv2d(pixels[None], w["patch_embed.proj.weight"], w.get("patch_embed.proj.bias"), stride=clip.patch)[0]
    grid_hw = (patches.shape[1], patches.shape[2])
    x = patches.flatten(1).T
    prefix = torch.cat([w[name][0] for name in ("cls_token", "reg_token") if name in w] or [x[:0]])
    side, trained = clip.trained_grid, w["pos_embed"][0]
    own = len(trained) - side * side  # positions of prefix tokens
    grid = trained[own:].reshape(side, side, -1).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=grid_hw, mode="bilinear", align_corners=False)[0].flatten(1).T
    if own:
        prefix = prefix + trained[:own]
    return clip.norm("norm_pre", torch.cat([prefix, x + grid])), len(prefix), grid_hw


@torch.no_grad()
def dense_features(
    clip: TimmWeights, pixels: torch.Tensor, settings: Any, post_norm: bool = False, gelu: str = "none"
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """[patches, dimensions] per feature, and the last one's attention between patches.

    Args:
        pixels: normalised, [3, height, width].
        settings: a `cliper.settings.MethodSettings` that keeps all features.
        post_norm: the norms of a block come after attention and MLP.
        gelu: ``approximate`` of the GELU of all MLPs.
    """
    w = clip.tensors
    x, first, grid_hw = embedded(clip, pixels)

    def branch_of_attention(block: str, mixed: torch.Tensor) -> torch.Tensor:
        y = clip.linear(f"{block}.attn.proj", clip.norm(f"{block}.attn.norm", mixed))
        if post_norm:
            y = clip.norm(f"{block}.norm1", y)
        return clip.scale((f"{block}.ls1.gamma", f"{block}.gamma_1"), y)

    def mlp(block: str, y: torch.Tensor) -> torch.Tensor:
        if f"{block}.mlp.fc1_g.weight" in w:
            hidden = F.silu(clip.linear(f"{block}.mlp.fc1_g", y)) * clip.linear(f"{block}.mlp.fc1_x", y)
        else:
            hidden = F.gelu(clip.linear(f"{block}.mlp.fc1", y), approximate=gelu)
        return clip.linear(f"{block}.mlp.fc2", clip.norm(f"{block}.mlp.norm", hidden))

    maps, inputs, outputs = [], [], []
    for i in range(clip.layers - 1):
        block = f"blocks.{i}"
        y = x if post_norm else clip.norm(f"{block}.norm1", x)
        inputs.append(y)
        q, k, v = (clip.heads_of(f"{block}.attn", part, y, grid_hw) for part in range(3))
        probabilities = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        maps.append(probabilities)
        x = x + branch_of_attention(block, (probabilities @ v).permute(1, 0, 2).reshape(len(x), -1))
        y = mlp(block, x if post_norm else clip.norm(f"{block}.norm2", x))
        x = x + clip.scale(
            (f"{block}.ls2.gamma", f"{block}.gamma_2"), clip.norm(f"{block}.norm2", y) if post_norm else y
        )
        outputs.append(x)
    features = [*inputs, x] if settings.preset == "release" else outputs

    last = f"blocks.{clip.layers - 1}"
    s = torch.stack(maps).sum(dim=0)
    dense = []
    for feature in features:
        y = feature if post_norm else clip.norm(f"{last}.norm1", feature)
        q, k, v = (clip.heads_of(f"{last}.attn", part, y, grid_hw) for part in range(3))
        if settings.preset == "release":
            s = scaled(s)
        if settings.attention == "query-key":
            p = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        elif settings.attention == "query-query":
            p = torch.softmax(q @ q.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        elif settings.preset == "paper":
            p = s / clip.layers
        else:
            p = symmetric(s)
        z = clip.norm("norm", branch_of_attention(last, (p @ v).permute(1, 0, 2).reshape(len(x), -1)))
        z = pooled_alone(clip, z, gelu)
        if "head.weight" in w:
            z = clip.linear("head", z)
        dense.append(z[first:])
    return dense, p.mean(dim=0)[first:, first:]


def pooled_alone(clip: TimmWeights, z: torch.Tensor, gelu: str) -> torch.Tensor:
    """The pooling head's output for each token as the only one; the tokens themselves without such a head."""
    w = clip.tensors
    if "attn_pool.kv.weight" not in w:
        return z
    width = z.shape[-1]
    value = z @ w["attn_pool.kv.weight"][width:].T + w["attn_pool.kv.bias"][width:]
    z = clip.linear("attn_pool.proj", value)
    hidden = F.gelu(clip.linear("attn_pool.mlp.fc1", clip.norm("attn_pool.norm", z)), approximate=gelu)
    return z + clip.linear("attn_pool.mlp.fc2", hidden)
