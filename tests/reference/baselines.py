"""The baselines' last blocks, transcribed like loops: head by head and row by row."""

import math
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F

from tests.reference.literal import ClipWeights

DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def rows_by_formula(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Linear interpolation along the first axis, align_corners=False, by its formula."""
    result = []
    for row in range(rows):
        position = min(max((row + 0.5) * len(x) / rows - 0.5, 0), len(x) - 1)
        low = math.floor(position)
        high = min(low + 1, len(x) - 1)
        result.append(x[low] * (1 - (position - low)) + x[high] * (position - low))
    return torch.stack(result)


def resize_by_formula(x: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """[height, width, ...] bilinearly to another size."""
    return rows_by_formula(rows_by_formula(x, size_hw[0]).transpose(0, 1), size_hw[1]).transpose(0, 1)


def cubic_rows_by_formula(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Cubic convolution (a = -0.75) along the first axis, as if there were a tenth of a row more."""

    def weight(distance: float) -> float:
        d, a = abs(distance), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    result = []
    for row in range(rows):
        position = (row + 0.5) * len(x) / (rows + 0.1) - 0.5
        taps = range(math.floor(position) - 1, math.floor(position) + 3)
        result.append(sum(weight(position - tap) * x[min(max(tap, 0), len(x) - 1)] for tap in taps))
    return torch.stack(result)


def resize_positions_by_formula(x: torch.Tensor, size_hw: tuple[int, int], bicubic: bool) -> torch.Tensor:
    """[height, width, ...] to another size."""
    if tuple(x.shape[:2]) == size_hw:
        return x
    rows = cubic_rows_by_formula if bicubic else rows_by_formula
    return rows(rows(x, size_hw[0]).transpose(0, 1), size_hw[1]).transpose(0, 1)


def literal_input_of_last_block(clip: ClipWeights, pixels: torch.Tensor, bicubic: bool = False) -> torch.Tensor:
    """[tokens, width], class token first."""
    w = clip.tensors
    patches = F.conv2d(pixels[None], w["conv1.weight"], stride=clip.patch)[0]
    side = clip.trained_grid
    trained = w["positional_embedding"][1:].reshape(side, side, -1)
    positions = resize_positions_by_formula(trained, tuple(patches.shape[1:]), bicubic)
    x = torch.cat([w["class_embedding"][None], patches.flatten(1).T])
    x = clip.layer_norm("ln_pre", x + torch.cat([w["positional_embedding"][:1], positions.flatten(0, 1)]))
    for i in range(clip.layers - 1):
        x = literal_block(clip, f"transformer.resblocks.{i}", x, "clip")
    return x


def literal_block(clip: ClipWeights, block: str, x: torch.Tensor, method: str) -> torch.Tensor:
    """One block, head by head and row by row."""
    y = clip.layer_norm(f"{block}.ln_1", x)
    queries, keys, values = (clip.heads_of(f"{block}.attn", part, y) for part in range(3))
    heads = []
    for q, k, v in zip(queries, keys, values, strict=True):
        scale = math.sqrt(q.shape[1])
        mixed = []
        for i in range(len(x)):
            if method == "maskclip":
                mixed.append(v[i])
                continue
            weights = {
                "clip": torch.softmax(k @ q[i] / scale, dim=0),
                "sclip": torch.softmax(q @ q[i] / scale, dim=0) + torch.softmax(k @ k[i] / scale, dim=0),
                "clearclip": torch.softmax(q @ q[i] / scale, dim=0),
            }[method]
            mixed.append((weights[:, None] * v).sum(dim=0))
        heads.append(torch.stack(mixed))
    attended = clip.linear(f"{block}.attn.out_proj", torch.cat(heads, dim=1))
    if method == "clearclip":
        return attended
    x = x + attended
    hidden = clip.activation(clip.linear(f"{block}.mlp.c_fc", clip.layer_norm(f"{block}.ln_2", x)))
    return x + clip.linear(f"{block}.mlp.c_proj", hidden)


def literal_proxyclip(
    clip: ClipWeights, x: torch.Tensor, dino: Path, dino_image: np.ndarray, input_hw: tuple[int, int]
) -> torch.Tensor:
    """[grid_h, grid_w, width] on DINO's grid, before ``ln_post``. ``dino_image`` is RGB of whole patches for DINO."""
    model = timm.create_model(f"local-dir:{dino}", pretrained=True, dynamic_img_size=True, num_classes=0).eval()
    grid_h, grid_w = (side // model.patch_embed.patch_size[0] for side in dino_image.shape[:2])
    pixels = (dino_image / 255 - np.array(DINO_MEAN)) / np.array(DINO_STD)
    with torch.no_grad():
        features = model.forward_features(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])[0, 1:]
    assert len(features) == grid_h * grid_w

    similarity = torch.stack([F.cosine_similarity(row[None], features) for row in features])
    sharpened = 3.0 * (similarity - 1.2 * similarity.mean())
    assert (sharpened < 0).any(dim=1).all(), "the case is not worth testing if every patch attends everywhere"
    assert ((sharpened >= 0).sum(dim=1) > 1).any(), "nor if none attends to another"
    last = f"transformer.resblocks.{clip.layers - 1}"
    values = clip.heads_of(f"{last}.attn", 2, clip.layer_norm(f"{last}.ln_1", x))[:, 1:]
    heads = []
    for v in values:
        on_clip_grid = v.reshape(input_hw[0] // clip.patch, input_hw[1] // clip.patch, -1)
        v = resize_by_formula(on_clip_grid, (grid_h, grid_w)).flatten(0, 1)
        mixed = []
        for row in sharpened:
            weights = torch.where(row < 0, 0.0, row.exp())
            mixed.append((weights[:, None] * v).sum(dim=0) / weights.sum())
        heads.append(torch.stack(mixed))
    return clip.linear(f"{last}.attn.out_proj", torch.cat(heads, dim=1)).reshape(grid_h, grid_w, -1)
