"""Attention of CLIP's early blocks and of timm's last blocks, transcribed: [heads, patches, patches] of one image."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.reference.baselines import literal_block, resize_positions_by_formula, rows_by_formula
from tests.reference.literal import ClipWeights


def clip_key_attention(clip: ClipWeights, pixels: torch.Tensor, block: int) -> torch.Tensor:
    """Keys of a block against keys, without the class token. Pixels [3, height, width] are normalised."""
    w = clip.tensors
    patches = F.conv2d(pixels[None], w["conv1.weight"], stride=clip.patch)[0]
    side = clip.trained_grid
    trained = w["positional_embedding"][1:].reshape(side, side, -1)
    positions = resize_positions_by_formula(trained, tuple(patches.shape[1:]), bicubic=False)
    x = torch.cat([w["class_embedding"][None], patches.flatten(1).T])
    x = clip.layer_norm("ln_pre", x + torch.cat([w["positional_embedding"][:1], positions.flatten(0, 1)]))
    for i in range(block):
        x = literal_block(clip, f"transformer.resblocks.{i}", x, "clip")
    name = f"transformer.resblocks.{block}"
    keys = clip.heads_of(f"{name}.attn", 1, clip.layer_norm(f"{name}.ln_1", x))[:, 1:]
    return torch.stack([torch.softmax(key @ key.T / math.sqrt(key.shape[1]), dim=1) for key in keys])


def timm_attention(model: Any, x: torch.Tensor, grid_hw: tuple[int, int], kind: str) -> torch.Tensor:
    """The last block's attention between patches, row by row.

    Args:
        x: the block's input [tokens, width]: first the tokens that are no patches.
        kind: what positions do: ``nothing``, ``pe`` or ``dinov3`` (rotations), ``sam`` (relative positions).
    """
    block = model.blocks[-1]
    w = dict(block.state_dict())
    y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], block.norm1.eps)
    width, count = x.shape[-1], block.attn.num_heads
    bias = w.get("attn.qkv.bias", torch.zeros(3 * width))
    queries, keys = (
        y @ w["attn.qkv.weight"][rows].T + bias[rows] for rows in (slice(0, width), slice(width, 2 * width))
    )
    heads, (rows, columns) = [], grid_hw
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    patches = slice(len(x) - len(cells), None)
    for head in range(count):
        own = slice(head * (width // count), (head + 1) * (width // count))
        q, k = queries[patches, own], keys[patches, own]
        if kind in ("pe", "dinov3"):
            turn = turned_as_pe if kind == "pe" else turned_as_dinov3
            q, k = (
                torch.stack([turn(of, cell, grid_hw) for of, cell in zip(part, cells, strict=True)]) for part in (q, k)
            )
        logits = q @ k.T / math.sqrt(q.shape[1])
        if kind == "sam":
            by_row = rows_by_formula(w["attn.rel_pos_h"], 2 * rows - 1)
            by_column = rows_by_formula(w["attn.rel_pos_w"], 2 * columns - 1)
            for i, (row, column) in enumerate(cells):
                for j, (other_row, other_column) in enumerate(cells):
                    logits[i, j] += q[i] @ by_row[row - other_row + rows - 1]
                    logits[i, j] += q[i] @ by_column[column - other_column + columns - 1]
        heads.append(torch.softmax(logits, dim=1))
    return torch.stack(heads)


def turned_as_pe(x: torch.Tensor, cell: tuple[int, int], grid_hw: tuple[int, int]) -> torch.Tensor:
    """Neighbouring pairs of numbers turned; half of them by the column, half by the row, as if there were 32."""
    quarter = len(x) // 4
    column, row = ((place + 1) / side * 32 for place, side in zip(cell[::-1], grid_hw[::-1], strict=True))
    angles = [place * 10_000 ** (-number / quarter) for place in (column, row) for number in range(quarter)]
    turned = x.clone()
    for pair, angle in enumerate(angles):
        a, b = x[2 * pair], x[2 * pair + 1]
        turned[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
        turned[2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def turned_as_dinov3(x: torch.Tensor, cell: tuple[int, int], grid_hw: tuple[int, int]) -> torch.Tensor:
    """Numbers turned with those half a head further; places go from -1 to 1, rows first."""
    quarter, half = len(x) // 4, len(x) // 2
    places = [2 * (place + 0.5) / side - 1 for place, side in zip(cell, grid_hw, strict=True)]
    angles = [2 * math.pi * place / 100 ** (2 * number / half) for place in places for number in range(quarter)]
    turned = x.clone()
    for index, angle in enumerate(angles):
        a, b = x[index], x[index + half]
        turned[index] = a * math.cos(angle) - b * math.sin(angle)
        turned[index + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned
