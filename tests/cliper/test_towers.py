"""timm's image towers taken apart: equal to the library's own, and dense features beside a literal transcription."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from torch.nn import functional as F

from cliper.fusion import fuse
from cliper.settings import VIT_B_16, MethodSettings
from cliper.towers import resize_positions, take_apart
from cliper.vision import VisionTower, merge_heads, trace
from tests.reference.towers import TimmWeights, dense_features
from tests.support.towers import DIMENSIONS, FAMILIES, small_tower

GREY = (0.5, 0.5, 0.5)
OTHER_GRID = (2, 5)


def pixels_of(model: TimmModel, grid_hw: tuple[int, int] | None = None) -> torch.Tensor:
    """Two normalised images on the tower's own grid or another one."""
    patch = model.trunk.patch_embed.patch_size[0]
    height, width = grid_hw or model.trunk.patch_embed.grid_size
    return torch.randn(2, 3, height * patch, width * patch, generator=torch.Generator().manual_seed(1))


def whole(tower: VisionTower, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The output of every block, the last one with its own attention."""
    traced = trace(tower, pixels, "paper", keep_attention=True)
    last, x = tower.blocks[-1], traced.features[-1]
    query, key, value = last.attention.qkv(last.before_attention(x), traced.rotation)
    return [*traced.features, last.finish(x, merge_heads(F.scaled_dot_product_attention(query, key, value)))]


def library_blocks(model: TimmModel, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The output of every block, as the library computes it in its own forward pass."""
    found: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: found.append(output)) for block in model.trunk.blocks]
    model(pixels)
    for hook in hooks:
        hook.remove()
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_pooled_output_are_the_librarys_own(family: str) -> None:
    model = small_tower(family)
    pixels, tower = pixels_of(model), VisionTower(model, GREY, GREY)
    blocks, expected = whole(tower, pixels), library_blocks(model, pixels)
    assert len(blocks) == len(expected) == 4
    assert all(close(one, other) for one, other in zip(blocks, expected, strict=True))
    if model.trunk.attn_pool is None:
        assert close(tower.parts.project(blocks[-1])[:, 0], model(pixels))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_that_holds_the_whole_image_changes_nothing(family: str) -> None:
    model = small_tower(family)
    tower, pixels = VisionTower(model, GREY, GREY), pixels_of(model, OTHER_GRID)
    plain = MethodSettings(**vars(VIT_B_16))
    stitched = replace(plain, windows="stitched", sliding_crop_px=8 * tower.patch_size_px)
    assert close(fuse(tower, pixels, stitched).dense, fuse(tower, pixels, plain).dense)
    assert close(fuse(tower, pixels, stitched).attention, fuse(tower, pixels, plain).attention)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokens_projection_is_the_pooled_output_of_this_token_alone(family: str) -> None:
    model = small_tower(family)
    tower, tokens = VisionTower(model, GREY, GREY), torch.randn(2, 3, 32)
    alone = [model.head(model.trunk.forward_head(model.trunk.norm(tokens[:, i : i + 1]))) for i in range(3)]
    if "registers" in family:  # its pool leaves prefix tokens out
        alone = [model.trunk.attn_pool(model.trunk.norm(tokens[:, i : i + 1])) for i in range(3)]
    assert close(tower.parts.project(tokens), torch.stack(alone, dim=1))
    assert tower.dimensions == alone[0].shape[-1] == (32 if family.startswith("SigLIP") else DIMENSIONS)


@pytest.mark.parametrize("family", ["EVA02", "PE", "PE bigG"])
def test_rotary_positions_on_another_grid_are_timms(family: str) -> None:
    """timm resizes absolute positions in another way than CLIPer: without them, only the rotary ones are left."""
    model = small_tower(family)
    model.trunk.pos_embed.data.zero_()
    dynamic = small_tower(family, dynamic_img_size=True)
    dynamic.load_state_dict(model.state_dict())
    pixels = pixels_of(model, OTHER_GRID)
    blocks = whole(VisionTower(model, GREY, GREY), pixels)
    assert all(close(one, other) for one, other in zip(blocks, library_blocks(dynamic, pixels), strict=True))


LITERAL: dict[str, dict[str, Any]] = {
    "SigLIP": {},
    "SigLIP 2": {"gelu": "tanh"},
    "SigLIP with registers": {},
    "EVA02": {},
    "EVA02-E": {"post_norm": True},
    "PE": {},
}


@pytest.mark.parametrize("family", LITERAL)
@pytest.mark.parametrize(
    "changes", [{}, {"preset": "paper"}, {"attention": "query-query"}, {"attention": "query-key"}], ids=str
)
def test_dense_features_are_the_literal_ones(family: str, changes: dict[str, Any]) -> None:
    model = small_tower(family)
    settings = MethodSettings(**vars(VIT_B_16) | {"preset": "release"} | changes)
    pixels = pixels_of(model, OTHER_GRID)[:1]
    fused = fuse(VisionTower(model, GREY, GREY), pixels, settings)
    dense, attention = dense_features(TimmWeights.of(model), pixels[0], settings, **LITERAL[family])
    assert fused.dense.shape[2] == OTHER_GRID[0] * OTHER_GRID[1], "prefix tokens are dropped"
    assert close(fused.dense[:, 0], torch.stack(dense))
    assert close(fused.attention[0], attention)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_queries_keys_and_values(family: str) -> None:
    """What the GPU's kernels read."""
    tower = VisionTower(small_tower(family), GREY, GREY)
    attention, x = tower.blocks[0].attention, torch.randn(2, tower.prefix_tokens + 6, 32)
    packed, rotation = torch.empty(2, x.shape[1], 96), tower.parts.rotation((2, 3))
    attention.pack(x, rotation, packed)
    for part, values in zip(packed.split(32, dim=-1), attention.qkv(x, rotation), strict=True):
        assert torch.equal(part, merge_heads(values))
    assert close(attention.value(x), packed[..., 64:])


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "has rotary positions of another kind": ("EVA02", {"rope_type": "dinov3"}),
    r"pools its patches in a way that leaves no dense features \(avg\)": ("SigLIP", {"global_pool": "avg"}),
    r"has another attention than the method takes apart \(DiffAttention\)": ("SigLIP", {"attn_layer": "diff"}),
    "has a single block": ("PE", {"depth": 1}),
    "has patches that are no squares": ("SigLIP", {"patch_size": (16, 8)}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_method_does_not_define_is_refused(reason: str) -> None:
    family, changes = REFUSED[reason]
    with pytest.raises(ValueError, match=reason):
        take_apart(small_tower(family, **changes))


def test_blocks_and_heads_of_other_kinds_are_refused() -> None:
    model = small_tower("SigLIP")
    model.trunk.blocks[1] = timm.models.vision_transformer.ResPostBlock(32, num_heads=2)
    with pytest.raises(ValueError, match=r"has blocks of another kind .* \(ResPostBlock\)"):
        take_apart(model)
    model = small_tower("SigLIP")
    model.trunk.attn_pool = timm.layers.AttentionPoolLatent(32, num_heads=2, latent_len=2)
    with pytest.raises(ValueError, match="has another attention-pooling head"):
        take_apart(model)
    model = small_tower("EVA02")
    model.trunk.blocks[0].attn.gate = torch.nn.Linear(32, 32)
    with pytest.raises(ValueError, match="has another attention than the method takes apart"):
        take_apart(model)


def test_positions_without_a_class_token() -> None:
    positions = torch.randn(9, 4)
    same = resize_positions(positions, (3, 3), (5, 4), "bilinear", prefix_tokens=0)
    with_class = resize_positions(torch.cat([torch.ones(1, 4), positions]), (3, 3), (5, 4), "bilinear")
    assert torch.equal(same, with_class[1:])
    assert torch.equal(resize_positions(positions, (3, 3), (3, 3), "bilinear", prefix_tokens=0), positions)
