"""What sharpens maps: each affinity against a literal transcription, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cliper import Labeler
from cliper.affinity import Affinity, ClipAffinity, TimmAffinity, clip_blocks
from cliper.diffusion import DiffusionModel, stable_diffusion_scheduler
from cliper.loading import check_diffusion, embed_empty_prompt, load_diffusion, load_vision_tower
from cliper.models import ModelError, find_clip, find_diffusion
from cliper.pipeline import Cliper
from cliper.settings import VIT_B_16, MethodSettings
from cliper.timm_models import find_timm, last_queries_and_keys, load_timm
from tests.cliper.test_pipeline import BASE, CPU, assert_agrees, some_image, some_queries
from tests.reference import affinity as reference
from tests.reference import literal
from tests.support.stages import prepare
from tests.support.tiny import write_tiny_diffusion, write_tiny_timm

FAMILIES: dict[str, dict[str, Any]] = {
    "1.5": {
        "linear": False,
        "attention_head_dim": 2,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    },
    "2.1": {
        "attention_head_dim": (2, 2, 4, 4),
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    },
    "XL": {
        "attention_head_dim": (1, 2, 4),
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 10,
    },
}
"""Blocks and kinds of the published configurations, with small widths."""
TIMM: dict[str, tuple[str, str, dict[str, Any]]] = {
    "DINO": ("vit_tiny_patch16_224", "nothing", {}),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", "nothing", {"init_values": 0.5}),
    "DINOv3": ("vit_small_patch16_dinov3", "dinov3", {}),
    "PE-Spatial": ("vit_pe_spatial_tiny_patch16_512", "pe", {}),
    "SAM": ("samvit_base_patch16", "sam", {"global_attn_indexes": (1,), "window_size": 3, "neck_chans": 8}),
}
BROKEN_UNETS: list[tuple[dict[str, Any], str]] = [
    ({"up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]}, "blocks of another kind .*Simple"),
    ({"in_channels": 9}, "reads 9 channels and the autoencoder gives 4"),
    ({"class_embed_type": "timestep"}, r"needs more than an image and a prompt \(class_embed_type is set\)"),
    ({"only_cross_attention": True}, "no self-attention"),
]  # fmt: skip


def build(clip: Path, model: Affinity | None = None, **changes: Any) -> Cliper:
    tower = load_vision_tower(find_clip(f"local-dir:{clip}"), CPU, torch.float32)
    settings = MethodSettings(**BASE | changes)
    return Cliper(tower, some_queries(), settings, model or ClipAffinity.of(tower))


def check_refined(cliper: Cliper, heads: torch.Tensor, image: np.ndarray, grid_hw: tuple[int, int]) -> None:
    """Refined maps are the coarse ones times these heads."""
    maps = cliper.maps(prepare(cliper.inputs, [image], [0]))
    expected = literal.multiply(heads.clone(), maps.coarse[0], cliper.settings, grid_hw)
    assert maps.refined[0].shape[1:] == grid_hw
    assert (maps.refined[0] - expected).abs().max() < 1e-4 * expected.abs().max()


class TestDiffusion:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_families_agree_with_the_literal_transcription(self, family: str, tiny_clip: Path, tmp_path: Path) -> None:
        folder = write_tiny_diffusion(tmp_path, **FAMILIES[family])
        spec, settings = find_diffusion(str(folder)), MethodSettings(**BASE)
        model = load_diffusion(spec, embed_empty_prompt(spec), CPU, torch.float32)
        assert check_diffusion(spec, settings) == (model.side_px, model.heads)
        assert_agrees(build(tiny_clip, model), some_image())

    @pytest.mark.parametrize("layers", [(0,), (2, 0, 1)])
    def test_layers_and_timestep_are_settings(self, layers: tuple[int, ...], tiny_clip: Path, tmp_path: Path) -> None:
        spec = find_diffusion(str(write_tiny_diffusion(tmp_path)))
        model = load_diffusion(spec, torch.zeros(1, 77, 8), CPU, torch.float32, timestep=400, layers=layers)
        assert model.heads == 2 * len(layers)
        assert_agrees(build(tiny_clip, model, diffusion_timestep=400, diffusion_layers=layers), some_image())

    def test_schedules_of_other_kinds_give_the_same_noise(self, tmp_path: Path) -> None:
        folder = write_tiny_diffusion(tmp_path)
        path = folder / "scheduler" / "scheduler_config.json"
        prompt, shares = torch.zeros(1, 77, 8), []
        for kind in ("PNDMScheduler", "EulerDiscreteScheduler", "DDIMScheduler"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": kind}))
            shares.append(load_diffusion(find_diffusion(str(folder)), prompt, CPU, torch.float32).shares)
        assert len(set(shares)) == 1
        kept = np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)[:102] ** 2)
        assert shares[0] == pytest.approx((kept**0.5, (1 - kept) ** 0.5), abs=1e-5)

    def test_the_timestep_is_the_official_release_s(self) -> None:
        scheduler = stable_diffusion_scheduler()
        scheduler.set_timesteps(50)
        assert scheduler.timesteps[45] == MethodSettings(**BASE).diffusion_timestep

    @pytest.mark.parametrize(("changes", "reason"), BROKEN_UNETS)
    def test_what_cannot_run_is_refused_from_its_configuration(
        self, changes: dict[str, Any], reason: str, tmp_path: Path
    ) -> None:
        folder = write_tiny_diffusion(tmp_path)
        config = json.loads((folder / "unet" / "config.json").read_text())
        (folder / "unet" / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ModelError, match=reason):
            check_diffusion(find_diffusion(str(folder)), MethodSettings(**BASE))

    def test_schedules_without_betas_and_missing_layers_are_refused(self, tmp_path: Path) -> None:
        folder = write_tiny_diffusion(tmp_path)
        with pytest.raises(ModelError, match="diffusion_layers must be below 3"):
            check_diffusion(find_diffusion(str(folder)), MethodSettings(**BASE, diffusion_layers=(3,)))
        flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(flow))
        with pytest.raises(ModelError, match=r"noise schedule \(FlowMatchEulerDiscreteScheduler\) has no betas"):
            check_diffusion(find_diffusion(str(folder)), MethodSettings(**BASE))


class TestClip:
    @pytest.mark.parametrize(
        "changes",
        [{"compensation": "mean"}, {"compensation": "product"}, {"compensation": "head", "head": 1},
         {"compensation": "mean", "preset": "paper", "affinity_side_px": 96}],
    )  # fmt: skip
    def test_agrees_with_the_literal_transcription(self, changes: dict[str, Any], tiny_clip: Path) -> None:
        cliper, image = build(tiny_clip, **changes | {"affinity": "clip"}), some_image()
        (prepared,) = prepare(cliper.inputs, [image], [0])
        assert prepared.affinity is not None
        grid_hw = (prepared.affinity.shape[0] // 16, prepared.affinity.shape[1] // 16)
        assert grid_hw == ((6, 9) if "affinity_side_px" in changes else (9, 13))
        weights = literal.ClipWeights.of(cliper.tower)
        resized = Image.fromarray(image).resize((16 * grid_hw[1], 16 * grid_hw[0]), Image.Resampling.BICUBIC)
        pixels = (np.asarray(resized) / 255 - np.array(weights.mean)) / np.array(weights.std)
        (block,) = clip_blocks(weights.layers)
        heads = reference.clip_key_attention(weights, torch.tensor(pixels).float().permute(2, 0, 1), block)
        check_refined(cliper, heads, image, grid_hw)

    def test_images_of_several_sizes_do_not_depend_on_each_other(self, tiny_clip: Path) -> None:
        cliper = build(tiny_clip, compensation="mean", affinity="clip", skip_absent=True)
        images = [some_image(*size) for size in ((70, 100), (100, 70), (70, 100), (64, 64))]
        prepared = prepare(cliper.inputs, images, [0] * 4)
        for alone, together in zip(prepared, cliper.predict(prepared), strict=True):
            (expected,) = cliper.predict([alone])
            assert np.allclose(together.scores, expected.scores, atol=1e-5)
            assert np.array_equal(together.runs.starts, expected.runs.starts)


class TestTimm:
    @pytest.mark.parametrize("kind", TIMM)
    @pytest.mark.parametrize("side_px", [64, 40])
    def test_agrees_with_the_literal_transcription(
        self, kind: str, side_px: int, tiny_clip: Path, tmp_path: Path
    ) -> None:
        name, positions, arguments = TIMM[kind]
        spec = find_timm(f"local-dir:{write_tiny_timm(tmp_path, name, **arguments)}")
        assert (spec.heads, spec.patch_size_px) == (2, 8)
        model = load_timm(spec, CPU, torch.float32)
        cliper = build(
            tiny_clip, TimmAffinity(model, spec.heads), affinity=f"timm:{spec.name}", affinity_side_px=side_px,
            compensation="mean",
        )  # fmt: skip
        image, seen = some_image(64, 104), []
        handle = model.model.blocks[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        cliper.maps(prepare(cliper.inputs, [image], [0]))
        handle.remove()
        grid_hw = (side_px // 8, round(side_px * 104 / 64 / 8))
        heads = reference.timm_attention(model.model, seen[0].flatten(0, -2), grid_hw, positions)
        assert (heads.amax(dim=2) > 2 / heads.shape[2]).any(), "the case is not worth testing if attention is even"
        check_refined(cliper, heads, image, grid_hw)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("resnet18", "does not read square patches"),
            ("swin_tiny_patch4_window7_224", "no self-attention in one step"),
            ("beit_base_patch16_224", "doesn't match model"),
            ("no_such_model", "Unknown model"),
        ],
    )
    def test_models_whose_last_attention_says_something_else_are_refused(self, name: str, reason: str) -> None:
        with pytest.raises(ModelError, match=f"timm model '{name}' cannot be used: .*{reason}"):
            find_timm(name)

    def test_windows_are_no_attention_of_all_patches(self, tmp_path: Path) -> None:
        arguments = TIMM["SAM"][2] | {"global_attn_indexes": (0,)}
        with pytest.raises(ModelError, match="does not compare all patches"):
            find_timm(f"local-dir:{write_tiny_timm(tmp_path, 'samvit_base_patch16', **arguments)}")

    def test_batches_are_images_one_after_the_other(self, tmp_path: Path) -> None:
        for name, _, arguments in TIMM.values():
            spec = find_timm(f"local-dir:{write_tiny_timm(tmp_path / name, name, **arguments)}")
            model = load_timm(spec, CPU, torch.float32).model
            pixels = torch.randn(2, 3, 40, 64)
            query, key = last_queries_and_keys(model, pixels)
            alone = last_queries_and_keys(model, pixels[1:])
            assert torch.allclose(query[1:], alone[0], atol=1e-4)
            assert torch.allclose(key[1:], alone[1], atol=1e-4)


class TestRequests:
    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"affinity": "sam"}, "affinity must be diffusion, clip or timm:NAME, not 'sam'"),
            ({"affinity": "timm:"}, "affinity must be diffusion, clip or timm:NAME"),
            ({"affinity": "clip", "compensation": "none"}, "affinity clip has no effect with compensation none"),
            ({"affinity": "clip", "diffusion": "demo"}, "diffusion demo has no effect with affinity clip"),
            ({"affinity": "clip", "diffusion_timestep": 5}, "diffusion_timestep has no effect with affinity clip"),
            ({"affinity_side_px": 96}, "affinity_side_px has no effect with affinity diffusion"),
            ({"diffusion": "demo", "diffusion_layers": []}, "diffusion_layers must be different numbers"),
            ({"diffusion": "demo", "diffusion_layers": [1, 1]}, "diffusion_layers must be different numbers"),
            ({"diffusion": "demo", "diffusion_layers": ["a"]}, "diffusion_layers must be whole numbers"),
            ({"affinity": "clip", "compensation": "head", "head": 99}, "head must be below"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, given: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            Labeler(["tree"], **{"clip": "demo", "diffusion": "none", "background": "none"} | given)

    def test_no_diffusion_model_is_looked_for(self, tiny_clip: Path, tmp_path: Path) -> None:
        """Its default is a repository of a hub that nobody asks."""
        folder = write_tiny_timm(tmp_path, TIMM["DINO"][0])
        for affinity in ("clip", f"timm:local-dir:{folder}"):
            labeler = Labeler(["a dog", "a cat"], f"local-dir:{tiny_clip}", background="none", affinity=affinity)
            assert labeler.spec.diffusion is None
            assert labeler.spec.settings.compensation == "mean"
            assert len(labeler(some_image()).scores) == 2

    def test_settings_come_back_from_a_manifest(self) -> None:
        settings = MethodSettings(**vars(VIT_B_16), diffusion_layers=(2, 0), diffusion_timestep=7)
        found = MethodSettings.from_document(json.loads(json.dumps(settings.document())))
        assert (found.diffusion_layers, found.diffusion_timestep) == ((2, 0), 7)


def test_implementations_have_the_interface() -> None:
    for kind in (DiffusionModel, ClipAffinity, TimmAffinity):
        missing = [name for name in ("heads", "is_compiled", "inputs", "memory_bytes", "attention")
                   if name not in {*dir(kind), *kind.__dataclass_fields__}]  # fmt: skip
        assert not missing
