"""CLIPer, transcribed literally: one image, one step after the other, nothing clever.

It shares no code with the package. The image tower runs from its raw weights, attention maps are all kept, the heads of
the diffusion attention are multiplied from the left as [positions, positions] matrices, classes are upsampled together.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.profiler import record_function


@dataclass
class ClipWeights:
    """An open_clip image tower as plain tensors."""

    tensors: dict[str, torch.Tensor]
    layers: int
    heads: int
    patch: int
    trained_grid: int
    quick_gelu: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, tower: Any) -> "ClipWeights":
        """Those of a `cliper.vision.VisionTower`."""
        model = tower.model
        block = model.transformer.resblocks[0]
        return cls(
            tensors={name: tensor.clone() for name, tensor in model.state_dict().items()},
            layers=len(model.transformer.resblocks),
            heads=block.attn.num_heads,
            patch=tower.patch_size_px,
            trained_grid=model.grid_size[0],
            quick_gelu=type(block.mlp.gelu).__name__ == "QuickGELU",
            mean=tower.mean,
            std=tower.std,
        )

    def layer_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], 1e-5)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def heads_of(self, name: str, part: int, x: torch.Tensor) -> torch.Tensor:
        """Queries (part 0), keys (1) or values (2) of a block's attention: [heads, tokens, head width]."""
        width = x.shape[-1]
        rows = slice(part * width, (part + 1) * width)
        y = x @ self.tensors[f"{name}.in_proj_weight"][rows].T + self.tensors[f"{name}.in_proj_bias"][rows]
        return y.reshape(len(x), self.heads, -1).permute(1, 0, 2)

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x)


@dataclass
class Stages:
    """What the method leaves behind, stage by stage, as in `cliper.pipeline.Maps` and the readout."""

    attention: torch.Tensor
    coarse: torch.Tensor
    refined: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor


@torch.no_grad()
def annotate(
    clip: ClipWeights,
    queries: tuple[torch.Tensor, torch.Tensor, list[int]],
    settings: Any,
    image: np.ndarray,
    diffusion: Any = None,
    noise: torch.Tensor | None = None,
    allowed: set[int] | None = None,
) -> Stages:
    """Run the method on one image.

    Args:
        clip: the image tower.
        queries: class rows, background rows, and the class of each class row.
        settings: a `cliper.settings.MethodSettings`.
        image: RGB.
        diffusion: a `cliper.diffusion.DiffusionModel`; its UNet's attention processors are replaced for the call.
        noise: [1, channels, latent_h, latent_w].
        allowed: classes that compete, if image-level labels are given.
    """
    class_rows, background_rows, class_of_row = queries
    text = torch.cat([class_rows, background_rows, class_rows.mean(0, keepdim=True)])
    text = text / text.norm(dim=-1, keepdim=True)

    largest = clip_pixels(clip, image, max(settings.scales) * settings.shorter_side_px).to(clip.tensors["proj"])
    coarse, attention = coarse_maps(clip, largest, text, class_of_row, settings)
    views = [coarse]
    for scale in sorted(settings.scales, reverse=True):
        pixels = largest if scale == max(settings.scales) else smaller(clip, largest, scale * settings.shorter_side_px)
        if pixels is not largest:
            views.append(coarse_maps(clip, pixels, text, class_of_row, settings)[0])
        if settings.flip:
            views.append(coarse_maps(clip, pixels.flip(-1), text, class_of_row, settings)[0].flip(-1))
    grid_hw = list(coarse.shape[1:])
    same = [F.interpolate(view[None], grid_hw, mode="bilinear", align_corners=False)[0] for view in views]
    coarse = torch.stack(same).mean(dim=0)

    refined = coarse if settings.compensation == "none" else compensate(coarse, diffusion, image, noise, settings)
    scores = (coarse.amax(dim=(1, 2)) + refined.amax(dim=(1, 2))) / 2
    labels = label(refined, scores, image.shape[:2], settings, allowed)
    return Stages(attention, coarse, refined, scores, labels)


def coarse_maps(
    clip: ClipWeights, pixels: torch.Tensor, text: torch.Tensor, class_of_row: list[int], settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sections 2 to 5 for one view of an image: coarse maps [classes, grid_h, grid_w] and the last attention."""
    dense, attention = dense_features(clip, pixels, settings)
    maps = [softmax_maps(logits_of(z, text, settings), class_of_row) for z in dense]
    if settings.windows == "average":
        windowed = sliding_logits(clip, pixels, text, settings)
        maps = [whole / 2 + softmax_maps(lg, class_of_row) / 2 for whole, lg in zip(maps, windowed, strict=True)]

    index = settings.select_layer if settings.early_embeddings else 0
    selected = maps[index].clone()
    for c in range(len(selected)):
        selected[c][selected[c] < settings.attention_threshold * selected[c].max()] = 0
    maps[index] = selected
    spread = torch.zeros_like(selected)
    for j in range(selected.shape[1]):
        spread[:, j] = (selected * attention[:, j]).sum(dim=1)
    coarse = spread + sum(maps) / len(maps) if settings.early_embeddings else spread
    grid_h, grid_w = pixels.shape[1] // clip.patch, pixels.shape[2] // clip.patch
    return coarse.reshape(-1, grid_h, grid_w), attention


def clip_pixels(clip: ClipWeights, image: np.ndarray, shorter_side_px: float) -> torch.Tensor:
    width, height = clip_size(clip, image.shape[0], image.shape[1], shorter_side_px)
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    normalised = (resized - np.array(clip.mean, np.float32)) / np.array(clip.std, np.float32)
    return torch.from_numpy(normalised).permute(2, 0, 1)


def smaller(clip: ClipWeights, pixels: torch.Tensor, shorter_side_px: float) -> torch.Tensor:
    width, height = clip_size(clip, pixels.shape[1], pixels.shape[2], shorter_side_px)
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]


def clip_size(clip: ClipWeights, height: int, width: int, shorter_side_px: float) -> tuple[int, int]:
    scale = round(shorter_side_px) / min(height, width)
    height, width = (int(side * scale / clip.patch + 0.5) * clip.patch for side in (height, width))
    return width, height


def early_blocks(
    clip: ClipWeights, pixels: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Section 2: inputs and outputs of the blocks before the last one [tokens, width], and their queries and keys."""
    w = clip.tensors
    patches = F.conv2d(pixels[None], w["conv1.weight"], stride=clip.patch)[0]
    grid_hw = patches.shape[1:]
    x = torch.cat([w["class_embedding"][None], patches.flatten(1).T])
    side = clip.trained_grid
    grid = w["positional_embedding"][1:].reshape(side, side, -1).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=tuple(grid_hw), mode="bilinear", align_corners=False)[0].flatten(1).T
    x = clip.layer_norm("ln_pre", x + torch.cat([w["positional_embedding"][:1], grid]))

    inputs, outputs, pairs = [], [], []
    for i in range(clip.layers - 1):
        block = f"transformer.resblocks.{i}"
        y = clip.layer_norm(f"{block}.ln_1", x)
        inputs.append(y)
        q, k, v = (clip.heads_of(f"{block}.attn", part, y) for part in range(3))
        pairs.append((q, k))
        probabilities = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        mixed = (probabilities @ v).permute(1, 0, 2).reshape(len(x), -1)
        x = x + clip.linear(f"{block}.attn.out_proj", mixed)
        hidden = clip.activation(clip.linear(f"{block}.mlp.c_fc", clip.layer_norm(f"{block}.ln_2", x)))
        x = x + clip.linear(f"{block}.mlp.c_proj", hidden)
        outputs.append(x)
    return inputs, outputs, pairs


def stitched_blocks(
    clip: ClipWeights, pixels: torch.Tensor, settings: Any
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
    """`early_blocks` of windows alone. For every patch of the image, what windows say of it is averaged."""
    rows, columns = (side // clip.patch for side in pixels.shape[1:])
    side = settings.window_px // clip.patch
    high, wide, step = min(side, rows), min(side, columns), round(side / 2)
    corners = [
        (min(top, rows - high), min(left, columns - wide))
        for top in range(0, rows - high + step, step)
        for left in range(0, columns - wide + step, step)
    ]
    seen: list[Any] = []
    for top, left in corners:
        window = pixels[:, top * clip.patch : (top + high) * clip.patch, left * clip.patch : (left + wide) * clip.patch]
        inputs, outputs, pairs = early_blocks(clip, window)
        per_head = [of.permute(1, 0, 2).flatten(1) for pair in pairs for of in pair]
        seen.append([*inputs, *outputs, *per_head])
    whole = []
    for place in range(len(seen[0])):
        tokens = [torch.stack([of[place][0] for of in seen]).mean(dim=0)]
        for row in range(rows):
            for column in range(columns):
                tokens.append(
                    torch.stack([
                        of[place][1 + (row - top) * wide + column - left]
                        for of, (top, left) in zip(seen, corners, strict=True)
                        if top <= row < top + high and left <= column < left + wide
                    ]).mean(dim=0)
                )  # fmt: skip
        whole.append(torch.stack(tokens))
    blocks = clip.layers - 1
    heads = [of.unflatten(1, (clip.heads, -1)).permute(1, 0, 2) for of in whole[2 * blocks :]]
    return whole[:blocks], whole[blocks : 2 * blocks], list(zip(heads[::2], heads[1::2], strict=True))


def dense_features(clip: ClipWeights, pixels: torch.Tensor, settings: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Section 3: [patches, dimensions] per kept feature, and the last one's attention between patches."""
    w = clip.tensors
    stitched = settings.windows == "stitched"
    inputs, outputs, pairs = stitched_blocks(clip, pixels, settings) if stitched else early_blocks(clip, pixels)
    maps = [torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) for q, k in pairs]
    x = outputs[-1]
    features = [*inputs, x] if settings.preset == "release" else outputs

    last = f"transformer.resblocks.{clip.layers - 1}"
    s = torch.stack(maps).sum(dim=0)
    keep = range(len(features)) if settings.early_embeddings else [range(len(features))[settings.select_layer]]
    dense = []
    for index, feature in enumerate(features):
        if settings.preset == "release":
            s = scaled(s)
        if index not in keep:
            continue
        y = clip.layer_norm(f"{last}.ln_1", feature)
        q, k, v = (clip.heads_of(f"{last}.attn", part, y) for part in range(3))
        pair = {"query-query": (q, q), "key-key": (k, k), "value-value": (v, v), "query-key": (q, k)}
        if settings.attention in pair:
            a, b = pair[settings.attention]
            p = torch.softmax(a @ b.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        elif settings.attention == "identity":
            p = torch.eye(len(x)).repeat(clip.heads, 1, 1).to(x)
        elif settings.preset == "paper":
            p = s / clip.layers
        else:
            p = symmetric(s)
        mixed = clip.linear(f"{last}.attn.out_proj", (p @ v).permute(1, 0, 2).reshape(len(x), -1))
        dense.append((clip.layer_norm("ln_post", mixed) @ w["proj"])[1:])
    return dense, p.mean(dim=0)[1:, 1:]


def scaled(s: torch.Tensor) -> torch.Tensor:
    """Section 3, step 1."""
    s = s / s.sum(dim=-2, keepdim=True)
    return s / s.sum(dim=-1, keepdim=True)


def symmetric(s: torch.Tensor) -> torch.Tensor:
    """Section 3, step 2."""
    p = (s + s.transpose(1, 2)) / 2
    p = torch.clamp(p - p.mean(dim=-2, keepdim=True), min=0)
    return p / p.sum(dim=-1, keepdim=True)


def logits_of(z: torch.Tensor, text: torch.Tensor, settings: Any) -> torch.Tensor:
    return settings.logit_scale * (text @ (z / z.norm(dim=-1, keepdim=True)).T)


def softmax_maps(logits: torch.Tensor, class_of_row: list[int]) -> torch.Tensor:
    probabilities = torch.softmax(logits, dim=0)
    classes = max(class_of_row) + 1
    return torch.stack(
        [
            torch.stack([probabilities[row] for row, own in enumerate(class_of_row) if own == c]).amax(dim=0)
            for c in range(classes)
        ]
    )


def sliding_logits(clip: ClipWeights, pixels: torch.Tensor, text: torch.Tensor, settings: Any) -> list[torch.Tensor]:
    """Section 5."""
    _, height, width = pixels.shape
    crop_h, crop_w = min(settings.window_px, height), min(settings.window_px, width)
    rows, columns = height // clip.patch, width // clip.patch
    number = torch.arange(rows * columns).reshape(rows, columns)
    totals: list[torch.Tensor] = []
    count = torch.zeros(rows * columns)
    matrix, pairs = torch.zeros(rows * columns, rows * columns), torch.zeros(rows * columns, rows * columns)
    for top in range(0, max(height - crop_h + 111, 0) // 112 * 112 + 1, 112):
        for left in range(0, max(width - crop_w + 111, 0) // 112 * 112 + 1, 112):
            y, x = min(top, height - crop_h), min(left, width - crop_w)
            dense, attention = dense_features(clip, pixels[:, y : y + crop_h, x : x + crop_w], settings)
            there = number[y // clip.patch : (y + crop_h) // clip.patch, x // clip.patch : (x + crop_w) // clip.patch]
            there = there.flatten()
            logits = [logits_of(z, text, settings) for z in dense]
            totals = totals or [torch.zeros(len(lg), rows * columns) for lg in logits]
            for total, lg in zip(totals, logits, strict=True):
                total[:, there] += lg
            count[there] += 1
            for i, patch in enumerate(there):
                matrix[patch, there] += attention[i]
                pairs[patch, there] += 1
    matrix = matrix / (pairs + 1e-5)
    matrix = matrix / matrix.sum(dim=-1, keepdim=True)
    return [(total / count) @ matrix for total in totals]


class RecordProbabilities:
    """A diffusers attention processor that computes attention step by step and keeps the probabilities."""

    probabilities: torch.Tensor

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(x) for x in (query, key, value))
        self.probabilities = torch.softmax(query @ key.transpose(1, 2) * attn.scale, dim=-1)
        return attn.to_out[0](attn.batch_to_head_dim(self.probabilities @ value))


def compensate(coarse: torch.Tensor, diffusion: Any, image: np.ndarray, noise: Any, settings: Any) -> torch.Tensor:
    """Section 6."""
    side = diffusion.side_px
    small = F.interpolate(torch.tensor(image).permute(2, 0, 1)[None] / 255, size=(side, side), mode="nearest")
    small = (small * 2 - 1).to(diffusion.vae.device, diffusion.vae.dtype)
    latent = diffusion.vae.encode(small).latent_dist.mean * diffusion.vae.config.scaling_factor
    t = torch.tensor(settings.diffusion_timestep)
    level = diffusion.scheduler.alphas_cumprod[t]
    noisy = level.sqrt() * latent + (1 - level).sqrt() * noise.to(latent)

    unet = diffusion.unet
    originals = unet.attn_processors
    recorders = {name: RecordProbabilities() for name in originals}
    unet.set_attn_processor(dict(recorders))
    config, added = unet.config, None
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[side, side, 0, 0, side, side]]).to(noisy)
        added = {"text_embeds": torch.zeros(1, width).to(noisy), "time_ids": sizes}
    prompt = diffusion.empty_prompt.to(unet.device, unet.dtype)
    unet(noisy.to(unet.dtype), t, encoder_hidden_states=prompt, added_cond_kwargs=added)
    unet.set_attn_processor(originals)
    block = max(i for i, kind in enumerate(config.up_block_types) if kind == "CrossAttnUpBlock2D")
    heads = torch.cat(
        [
            recorders[f"up_blocks.{block}.attentions.{index}.transformer_blocks.0.attn1.processor"].probabilities
            for index in settings.diffusion_layers
        ]
    )
    with record_function("cliper/compensation"):
        edge = int(heads.shape[1] ** 0.5)
        return multiply(heads, coarse, settings, (edge, edge))


def multiply(heads: torch.Tensor, coarse: torch.Tensor, settings: Any, grid_hw: tuple[int, int]) -> torch.Tensor:
    """Heads [heads, positions, positions], combined from the left, times the class maps."""
    if settings.preset == "release":
        heads = heads / (heads.amax(dim=-2, keepdim=True) + 1e-5)
        heads[heads < settings.attention_threshold] = 0
        heads = heads / (heads.sum(dim=-1, keepdim=True) + 1e-5)
    if settings.compensation == "product":
        matrix = heads[0]
        for head in heads[1:]:
            matrix = matrix @ head
    elif settings.compensation == "mean":
        matrix = heads.mean(dim=0)
    else:
        matrix = heads[settings.head]
    x = F.interpolate(coarse[None], size=grid_hw, mode="bilinear", align_corners=False)[0].flatten(1).T
    return (matrix @ x.to(matrix)).T.reshape(-1, *grid_hw)


def label(
    refined: torch.Tensor, scores: torch.Tensor, image_hw: tuple[int, ...], settings: Any, allowed: set[int] | None
) -> torch.Tensor:
    """Section 7."""
    u = F.interpolate(refined[None], size=tuple(image_hw), mode="bilinear", align_corners=False)[0]
    for c in range(len(u)):
        u[c] = u[c] / (u[c].max() + 1e-5) * scores[c]
        if settings.normalize_maps:
            u[c] = u[c] - u[c].min()
            u[c] = u[c] / (u[c].max() + 1e-6)
        if c not in allowed if allowed is not None else scores[c] <= settings.score_threshold:
            u[c] = 0
    if settings.background_threshold > 0:
        u[u < settings.background_threshold] = 0
        return torch.where(u.amax(dim=0) > 0, u.argmax(dim=0) + 1, 0)
    background = (1 - u.amax(dim=0)) ** 2
    return torch.cat([background[None], u]).argmax(dim=0)
