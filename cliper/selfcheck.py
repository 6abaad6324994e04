"""Whether kernels and compiled parts compute what their plain versions do, on this device and on random cases."""

from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cliper import attention_kernels
from cliper.compensation import spread
from cliper.diffusion import DiffusionModel
from cliper.fusion import EarlyAttention, scale_rows
from cliper.groups import Groups
from cliper.labels import find_competitors, label_map, label_together, send
from cliper.runs import first_pixels
from cliper.segmenter import AllowedClasses
from cliper.settings import VIT_B_16, MethodSettings
from cliper.towers import PackedAttention
from cliper.vision import FlashMaps, PlainMaps

ROUNDS = 4
PEAK_SHARE = 1e-3
FEW = 0.01
"""Rounding can move attention across the threshold: so many entries may differ by more than `PEAK_SHARE` of a map's
greatest."""


IMAGES_HW = [(37, 53), (1, 1), (40, 61), (90, 1), (1, 130), (6, 5)]
FEW_PIXELS = 1e-3
"""Rounding can decide between two classes of nearly the same value."""
HALF_PRODUCTS = 10
"""Times the tolerance: the plain version rounds its logits to the tower's format before the softmax."""


COMPILED_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
"""Of the largest value. Compiled code keeps intermediate values in fp32, so that it rounds less often."""


TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 5e-5}
"""Of the largest value: what rounding large logits allows; for the fusion."""


class Case(NamedTuple):
    """Sizes of a case; none needs to divide a kernel's tile.

    Attributes:
        strength: of the logits. Large ones give attention to few entries, and underflow in half precision.
    """

    dtype: torch.dtype
    tokens: int = 129
    heads: int = 2
    width: int = 64
    side: int = 12
    classes: int = 5
    strength: float = 4.0

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]


def disagreements(device: torch.device, case: Case, seed: int = 0) -> list[str]:
    """What is wrong, a sentence for each kernel that fails or differs; empty if all is well."""
    found = []
    for check in (check_early_maps, check_fusion, check_compensation, check_labels):
        try:
            found += check(device, case, torch.Generator().manual_seed(seed))
        except Exception as error:  # a compiler's errors have no common class
            found.append(f"{check.__name__}: {type(error).__name__}: {error}")
    return found


@torch.inference_mode()
def check_compiled(model: DiffusionModel, batch: int, problems: list[str], **options: Any) -> None:
    """Compile the parts of a diffusion model for a batch. A part that then differs runs as it is.

    Args:
        batch: images.
        problems: gets a sentence for each part that fails or differs.
        options: of `torch.compile`.
    """
    generator, device = torch.Generator().manual_seed(0), model.unet.device
    size = (batch, 3, model.side_px, model.side_px)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).to(device)
    noise = torch.stack([model.noise(seed) for seed in range(batch)]).to(device)
    model.encoder.fast = model.cut_unet.fast = None
    latents = model.encoder(pixels)
    attention = model.queries_and_keys(latents, noise)
    model.compile(problems, **options)
    found = differing("latents", model.encoder(pixels), latents, COMPILED_TOLERANCE[model.vae.dtype])
    for difference in found:
        model.encoder.give_up(difference)
    compiled = model.queries_and_keys(latents, noise)
    parts = zip(("query", "key") * len(compiled), sum(compiled, ()), sum(attention, ()), strict=True)
    for name, after, before in parts:
        for difference in differing(name, after, before.float(), COMPILED_TOLERANCE[model.unet.dtype]):
            model.cut_unet.give_up(difference)


def check_early_maps(device: torch.device, case: Case, generator: torch.Generator) -> list[str]:
    """Flash attention of two blocks and the sum of their maps."""
    blocks, batch, width = 2, 2, case.heads * case.width
    x = torch.randn(batch, case.tokens, width, generator=generator).to(device, case.dtype)
    plain, flash, found = PlainMaps(), FlashMaps(blocks), []
    for _ in range(blocks):
        of_block = nn.MultiheadAttention(width, case.heads, batch_first=True)
        weight = torch.randn(3 * width, width, generator=generator) * (case.strength / width) ** 0.5
        of_block.in_proj_weight.data = weight
        attention = PackedAttention(of_block.to(device, case.dtype).requires_grad_(False))
        mixed = [maps.mix(attention, x).float() for maps in (plain, flash)]
        found += differing("flash attention", mixed[1], mixed[0], HALF_PRODUCTS * case.tolerance)
    return found + differing("sum of early maps", flash.total(), plain.total(), HALF_PRODUCTS * case.tolerance)


def check_fusion(device: torch.device, case: Case, generator: torch.Generator) -> list[str]:
    """The kernels of early-layer fusion."""
    layers, batch, heads, width = 3, 2, case.heads, case.width
    qkv = torch.randn(layers, batch, case.tokens, 3 * heads * width, generator=generator)
    qkv[..., : heads * width] *= case.strength
    qkv = qkv.to(device, case.dtype)
    value = torch.randn(ROUNDS, batch, case.tokens, heads * width, generator=generator).to(device, case.dtype)
    query, key, _ = qkv.float().unflatten(-1, (3, heads, width)).permute(3, 0, 1, 4, 2, 5)
    logits = query @ key.transpose(-1, -2) * width**-0.5
    total = attention_kernels.early_sum(qkv, logits.logsumexp(dim=-1))
    found = differing("early_sum", total, logits.softmax(dim=-1).sum(dim=0), case.tolerance)
    rows, sums = attention_kernels.scaling_rounds(total, ROUNDS)
    mixed, mean = attention_kernels.symmetric_products(total, rows, sums, value)
    if (total == 0).all(dim=-2).any():  # half precision lost a whole column, which the plain version never does
        return found if mixed.isfinite().all() and mean.isfinite().all() else [*found, "symmetric_products: not finite"]
    early = EarlyAttention(total.float())
    for index in range(ROUNDS):
        early.next_round()
        found += differing("row_scales", rows[index], early.rows[..., 0], 5e-5)
        found += differing("column_sums", sums[index + 1], early.column_sums[..., 0, :], 5e-5)
        attention = scale_rows(early.symmetric())
        plain = attention @ value[index].float().unflatten(-1, (heads, width)).transpose(1, 2)
        found += differing("symmetric_products", mixed[index], plain.transpose(1, 2).flatten(2), case.tolerance)
    return found + differing("mean_attention", mean, attention.mean(dim=1), 5e-5)


def check_compensation(device: torch.device, case: Case, generator: torch.Generator) -> list[str]:
    """The kernels of fine-grained compensation, for both ways of using attention."""
    batch, positions = 2, case.side**2
    packed = torch.randn(2, batch, positions, case.heads, case.width, generator=generator)
    packed[0] *= case.strength
    query, key = packed.to(device, case.dtype).transpose(2, 3)
    maps = torch.rand(batch, positions, case.classes, generator=generator)
    maps[..., 0] *= 1e6  # coarse values have no bound
    maps = maps.to(device)
    found = []
    for settings in (
        MethodSettings(**vars(VIT_B_16), preset="release"),
        MethodSettings(**vars(VIT_B_16), preset="paper"),
    ):
        threshold = None if settings.preset == "paper" else settings.attention_threshold
        after = attention_kernels.spread_heads(maps, query, key, threshold)
        plain = torch.stack([plainly_spread(*of, settings) for of in zip(maps, query, key, strict=True)])
        far = (after - plain).abs() > PEAK_SHARE * plain.amax(dim=1, keepdim=True)
        if not after.isfinite().all() or far.float().mean() > FEW:
            found.append(f"spread, preset {settings.preset}: {far.float().mean():.1%} of the entries differ")
    return found


def check_labels(device: torch.device, case: Case, generator: torch.Generator) -> list[str]:
    """The kernels of labels, for images and maps of several sizes, and all ways of using thresholds."""
    middle, last = case.classes // 2, case.classes - 1
    stacks = []
    for images, *map_hw in (3, case.side, case.side + 2), (1, 1, 1), (2, case.side // 2 + 2, case.side):
        stack = torch.rand(images, case.classes, *map_hw, generator=generator) ** case.strength
        stack[:, case.classes // 3] = 0
        stack[:, 0] *= 1e6  # coarse values have no bound
        stack[:, last] = stack[:, middle]
        stacks.append(stack.to(device))
    refined = Groups([[4, 0, 2], [1], [3, 5]], stacks)
    scores = 2 * torch.rand(len(IMAGES_HW), case.classes, generator=generator)
    scores[:, last] = scores[:, middle]
    some = {0, case.classes // 3, middle, last, *torch.randperm(case.classes, generator=generator)[:4].tolist()}
    allowed: AllowedClasses = [some, None, [], some, some, [last]]
    pixels, found = [height * width for height, width in IMAGES_HW], []
    for normalize, threshold in product((False, True), (0.0, 0.4)):
        settings = MethodSettings(**vars(VIT_B_16) | {"normalize_maps": normalize, "background_threshold": threshold})
        competitors = find_competitors(scores, settings, allowed)
        labels, first = label_together(refined, competitors, IMAGES_HW, settings)
        maps = [of.view(image_hw) for of, image_hw in zip(labels.split(pixels), IMAGES_HW, strict=True)]
        parts = zip(refined, send(competitors, device), IMAGES_HW, strict=True)
        plain = torch.cat([label_map(*of, settings).flatten() for of in parts])
        # Plain versions need not round equal maps in the same way.
        differ = [of.masked_fill(of == last + 1, middle + 1) for of in (labels, plain)]
        share = (differ[0] != differ[1]).float().mean()
        wrong = {
            f"{share:.1%} of the pixels differ": share > FEW_PIXELS,
            "the last of equal values wins": middle != last and (labels[: -pixels[-1]] == last + 1).any(),
            "runs begin elsewhere": not torch.equal(first, torch.cat([first_pixels(of).flatten() for of in maps])),
        }
        found += [f"labels, {normalize=}, {threshold=}: {problem}" for problem, is_there in wrong.items() if is_there]
    return found


def plainly_spread(maps: Tensor, query: Tensor, key: Tensor, settings: MethodSettings) -> Tensor:
    """Maps of one image [positions, classes] after all heads."""
    now, scratch = maps.T, maps.new_empty(len(maps), len(maps))
    for one_query, one_key in reversed(list(zip(query.float(), key.float(), strict=True))):
        now = spread(one_query, one_key, now, settings, scratch)
    return now.T


def differing(name: str, found: Tensor, expected: Tensor, tolerance: float) -> list[str]:
    error = float((found.float() - expected).abs().max() / expected.abs().max())
    return [] if error <= tolerance else [f"{name}: differs by {error:.1e} of the largest value"]
