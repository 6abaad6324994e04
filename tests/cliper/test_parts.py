"""The method's parts on their own: edges that whole images do not reach."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from cliper import labels as labels_module
from cliper.coarse import Queries, class_maps, coarse_maps
from cliper.compensation import refine
from cliper.diffusion import DiffusionModel, attention_layers
from cliper.fusion import EarlyAttention, scale_rows
from cliper.groups import Groups
from cliper.labels import ResizedMaps, winners_at_once, winners_in_turn
from cliper.loading import load_diffusion, load_text_encoder, load_vision_tower
from cliper.models import find_clip, find_diffusion
from cliper.preprocess import FEW_PATCHES, InputSpec, most_patches, patch_grid_hw, resize_nearest
from cliper.runs import find_runs
from cliper.settings import VIT_B_16, VIT_L_14, MethodSettings, encoder_defaults
from cliper.text import TEMPLATE_SETS, embed_phrases, parse_templates
from cliper.towers import take_apart
from cliper.transfer import ALIGNMENT_BYTES, channels_first, pack, unpack
from cliper.vision import channel_statistics, normalize
from cliper.windows import window_corners
from schemas.runs import labels_from_runs
from tests.support.stages import labels_of
from tests.support.tiny import write_tiny_diffusion

CPU = torch.device("cpu")


def some_settings(**changes: Any) -> MethodSettings:
    return MethodSettings(**(vars(VIT_B_16) | changes))


class TestPreprocess:
    @pytest.mark.parametrize(
        ("image_hw", "shorter", "patch", "expected"),
        [
            ((213, 320), 224, 16, (14, 21)),
            ((214, 320), 336, 16, (21, 31)),
            ((213, 320), 238, 14, (17, 26)),
            ((320, 213), 238, 14, (26, 17)),
            ((500, 500), 336, 14, (24, 24)),
            ((1, 1), 336, 16, (21, 21)),
            ((1, 20_000), 336, 16, (1, FEW_PATCHES)),
            ((20_000, 1), 336, 16, (FEW_PATCHES, 1)),
            ((1024, 2048), 560, 16, (35, 70)),
            ((768, 1024), 1024, 16, (64, 85)),
            ((1024, 3072), 1024, 16, (64, 192)),
            ((1024, 6144), 1024, 16, (45, 272)),
        ],
    )
    def test_grid(self, image_hw: tuple[int, int], shorter: int, patch: int, expected: tuple[int, int]) -> None:
        assert patch_grid_hw(image_hw, shorter, patch) == expected

    @given(st.integers(1, 40_000), st.integers(1, 40_000), st.sampled_from([14, 16, 32]), st.sampled_from([336, 1024]))
    def test_grid_is_never_empty_nor_too_large(self, height: int, width: int, patch: int, shorter: int) -> None:
        rows, columns = patch_grid_hw((height, width), shorter, patch)
        assert rows >= 1
        assert columns >= 1
        assert rows * columns <= most_patches(shorter, patch)
        if not InputSpec(shorter, patch).is_coarser((height, width)):
            assert abs(min(rows, columns) - shorter / patch) <= 0.5

    @pytest.mark.parametrize(
        ("image_hw", "shorter", "coarser"),
        [
            ((375, 500), 336, False),
            ((100, 920), 336, False),
            ((100, 940), 336, True),
            ((768, 1024), 1024, False),
            ((1024, 3072), 1024, False),
            ((3200, 1024), 1024, True),
        ],
    )
    def test_panoramas_get_a_coarser_grid(self, image_hw: tuple[int, int], shorter: int, coarser: bool) -> None:
        assert InputSpec(shorter, 16).is_coarser(image_hw) == coarser
        patches = np.prod(InputSpec(shorter, 16).clip_hw(image_hw)) / 16**2
        assert (patches < 0.99 * (shorter / 16) ** 2 * max(image_hw) / min(image_hw)) == coarser

    def test_clip_reads_bicubic_pixels_normalised(self, tiny_clip: Path) -> None:
        image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        clip = InputSpec(32, 16).prepare(Image.fromarray(image), 0).clip
        assert np.array_equal(clip, np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC)))
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        pixels = normalize(channels_first([clip], CPU), channel_statistics(mean, std, CPU))[0]
        assert np.allclose(pixels.permute(1, 2, 0).numpy(), (clip / 255 - mean) / std, atol=1e-5)

    @given(st.integers(1, 1200), st.integers(1, 1200), st.sampled_from([16, 128, 512]), st.sampled_from([9_999, 2**24]))
    def test_nearest_pixels_are_those_that_torch_chooses(self, height: int, width: int, side: int, band: int) -> None:
        numbers = np.stack(np.broadcast_arrays(*np.ogrid[:height, :width], 0), axis=-1)
        high, low = (numbers // 256).astype(np.uint8), (numbers % 256).astype(np.uint8)
        for image in (high, low):
            expected = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None], (side, side), mode="nearest")[0]
            with patch("cliper.preprocess.BAND_PIXELS", band):
                found = resize_nearest(Image.fromarray(image), (side, side))
            assert np.array_equal(found, expected.permute(1, 2, 0).numpy())

    @pytest.mark.parametrize(
        ("spec", "image_hw", "clip_hw", "affinity_hw"),
        [
            (InputSpec(112, 16), (70, 100), (112, 160), None),
            (InputSpec(112, 16, diffusion_side_px=128), (70, 100), (112, 160), (128, 128)),
            (InputSpec(112, 14, affinity_patch_size_px=16), (70, 100), (112, 154), (112, 160)),
            (InputSpec(336, 16, affinity_patch_size_px=8), (100, 1000), (320, 3232), (168, 1744)),
        ],
    )
    def test_sizes_that_models_read(
        self,
        spec: InputSpec,
        image_hw: tuple[int, int],
        clip_hw: tuple[int, int],
        affinity_hw: tuple[int, int] | None,
    ) -> None:
        prepared = spec.prepare(Image.new("RGB", image_hw[::-1]), seed=3)
        assert prepared.image_hw == image_hw
        assert prepared.clip.shape == (*clip_hw, 3)
        assert (prepared.affinity.shape[:2] if prepared.affinity is not None else None) == affinity_hw
        assert prepared.seed == 3


class TestGroups:
    def test_images_keep_their_places(self) -> None:
        tensors = [torch.full((2, size), float(size)) for size in (3, 1, 3, 2)]
        groups = Groups([[1], [0, 2], [3]], [tensors[1][None], torch.stack([tensors[0], tensors[2]]), tensors[3][None]])
        flat = groups.flat()
        assert len(groups.images) == len(tensors)
        for found, start, expected in zip(groups, groups.starts(), tensors, strict=True):
            assert torch.equal(found, expected)
            assert torch.equal(flat[start : start + expected.numel()], expected.flatten())
        assert groups.map(lambda stack: stack.amax(dim=2)).stacked()[:, 0].tolist() == [3, 1, 3, 2]

    def test_one_stack_is_not_copied(self) -> None:
        stack = torch.rand(3, 2, 4)
        groups = Groups.together(stack)
        assert groups.stacked() is stack
        assert groups.flat().data_ptr() == stack.data_ptr()
        assert torch.equal(Groups.apart(list(groups)).stacked(), stack)


def test_packed_tensors_come_back() -> None:
    tensors = [torch.rand(3), torch.arange(5), torch.zeros(0), torch.ones(2, 2, dtype=torch.uint8), torch.arange(2)]
    for found, expected in zip(unpack(pack(tensors), tensors), tensors, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        assert found.storage_offset() * found.element_size() % ALIGNMENT_BYTES == 0


class TestRuns:
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
    def test_runs_found_by_torch_are_those_of_the_label_maps(
        self, height: int, width: int, top: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        maps = [np.sort(rng.integers(0, top + 1, hw), axis=0) for hw in ((height, width), (width, height), (1, 1))]
        for labels, runs in zip(maps, find_runs([torch.from_numpy(labels) for labels in maps]), strict=True):
            assert np.array_equal(labels_from_runs(runs.starts, runs.labels, runs.image_hw), labels)
            assert (np.diff(runs.labels) != 0).all(), "neighbouring runs differ"
            assert runs.starts[0] == 0
            assert (np.diff(runs.starts) > 0).all()


class TestResizedMaps:
    @pytest.mark.parametrize("image_hw", [(1, 1), (1, 90), (7, 5), (16, 20), (61, 45), (333, 500), (1200, 160)])
    @pytest.mark.parametrize("block_values", [1, 12_000, 10**7])
    def test_blocks_are_rows_of_the_resized_maps(
        self, image_hw: tuple[int, int], block_values: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(labels_module, "CPU_BLOCK_VALUES", block_values)
        maps = torch.rand(3, 16, 20)
        expected = F.interpolate(maps[None], image_hw, mode="bilinear", align_corners=False)[0, [2, 0]]
        resized = ResizedMaps(maps, image_hw)
        blocks = resized.blocks()
        found = torch.cat([resized.block(rows, [2, 0]) for rows in blocks], dim=1)
        if len(blocks) == 1:
            assert torch.equal(found, expected)
        else:
            assert (found - expected).abs().max() <= 2e-6

    @pytest.mark.parametrize("normalize_maps", [True, False])
    @pytest.mark.parametrize("background_threshold", [0.0, 0.3])
    def test_label_maps_do_not_depend_on_blocks(
        self, normalize_maps: bool, background_threshold: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refined = F.interpolate(torch.rand(1, 5, 6, 6), (24, 30), mode="bilinear")[0]
        settings = some_settings(normalize_maps=normalize_maps, background_threshold=background_threshold)
        scores = torch.tensor([1.2, 0.9, 0.1, 1.0, 0.8])
        whole = labels_of(refined, scores, (300, 400), settings)
        monkeypatch.setattr(labels_module, "CPU_BLOCK_VALUES", 1)
        assert (labels_of(refined, scores, (300, 400), settings) == whole).float().mean() > 0.9999
        assert len(whole.unique()) > 3, "the case is not worth testing if few classes win"


class TestFusion:
    def test_a_row_without_positive_entries_is_zero_not_nan(self) -> None:
        assert torch.equal(scale_rows(torch.zeros(1, 1, 3, 3)), torch.zeros(1, 1, 3, 3))

    @pytest.mark.parametrize("rounds", [1, 2, 7])
    def test_rounds_equal_scaling_columns_and_rows_again_and_again(self, rounds: int) -> None:
        total = (3 * torch.randn(2, 3, 9, 9)).softmax(dim=-1)
        early, plain = EarlyAttention(total), total.double()
        for _ in range(rounds):
            early.next_round()
            plain = plain / plain.sum(dim=-2, keepdim=True)
            plain = plain / plain.sum(dim=-1, keepdim=True)
        plain = (plain + plain.transpose(-1, -2)) / 2
        plain = (plain - plain.mean(dim=-2, keepdim=True)).clamp(min=0)
        assert torch.allclose(early.symmetric().double(), plain, atol=1e-6)
        assert torch.allclose(scale_rows(early.symmetric()).sum(dim=-1), torch.ones(2, 3, 9))


class TestCoarse:
    def test_a_class_takes_the_maximum_of_its_queries(self) -> None:
        rows = torch.eye(4)
        queries = Queries.build(rows[:3], rows[3:], torch.tensor([0, 1, 1]))
        logits = torch.randn(2, 5, 7)
        probabilities = logits.softmax(dim=1)
        maps = class_maps(logits, queries)
        assert torch.equal(maps[:, 0], probabilities[:, 0])
        assert torch.equal(maps[:, 1], torch.maximum(probabilities[:, 1], probabilities[:, 2]))

    def test_the_extra_query_is_the_mean_of_the_class_rows(self) -> None:
        rows = torch.eye(3)
        queries = Queries.build(rows[:2], rows[2:], torch.tensor([0, 1]))
        assert queries.rows[-1].tolist() == [0.5, 0.5, 0.0]

    def test_no_background_words_are_allowed(self) -> None:
        queries = Queries.build(torch.eye(2), torch.zeros(0, 2), torch.tensor([0, 1]))
        assert class_maps(torch.randn(1, 3, 4), queries).shape == (1, 2, 4)

    def test_the_mean_sees_the_thresholded_map_and_the_input_is_left_alone(self) -> None:
        maps = torch.tensor([[[[0.1, 1.0]]], [[[1.0, 1.0]]]])
        for blocks in ([maps], maps.split(1)):
            result = coarse_maps(blocks, torch.eye(2)[None], selected=0, attention_threshold=0.5, early_embeddings=True)
            assert torch.allclose(result, torch.tensor([[[0.0 + 0.5, 1.0 + 1.0]]]))
            assert maps[0, 0, 0, 0] == torch.tensor(0.1)


class TestSliding:
    @pytest.mark.parametrize(
        ("length", "crop", "expected"),
        [
            (224, 224, [0]),
            (336, 224, [0, 112]),
            (496, 224, [0, 112, 224, 272]),
            (496, 336, [0, 112, 160]),
            (112, 112, [0]),
        ],
    )
    def test_windows(self, length: int, crop: int, expected: list[int]) -> None:
        assert window_corners((length, 112), (crop, 112), 112) == [(top, 0) for top in expected]
        assert window_corners((112, length), (112, crop), 112) == [(0, left) for left in expected]


class TestWinners:
    def test_at_once_and_in_turn_are_the_same(self) -> None:
        generator = torch.Generator().manual_seed(0)
        values = (
            torch.randint(0, 4, (5, 30, 40), generator=generator) / 4
        )  # with many equal values, and pixels of zeros
        values[:, :3] = 0
        labels = [2, 3, 7, 300, 1]
        best, winner = winners_in_turn(values, labels, torch.int32)
        best_at_once, winner_at_once = winners_at_once(values, torch.tensor(labels, dtype=torch.int32))
        assert torch.equal(best, best_at_once)
        assert torch.equal(winner, winner_at_once)
        assert set(winner.unique().tolist()) == {0, *labels}


class TestCompensation:
    def test_product_is_applied_in_the_order_of_the_heads(self) -> None:
        generator = torch.Generator().manual_seed(0)
        queries, keys = torch.randn(2, 3, 16, 4, generator=generator)
        coarse = torch.rand(5, 2, 2, generator=generator)
        settings = some_settings(preset="paper")
        matrices = [(q @ k.T / 2).softmax(dim=-1) for q, k in zip(queries, keys, strict=True)]
        x = torch.nn.functional.interpolate(coarse[None], (4, 4), mode="bilinear")[0].flatten(1).T
        expected = (matrices[0] @ matrices[1] @ matrices[2] @ x).T.reshape(5, 4, 4)
        assert torch.allclose(refine(coarse, [(queries, keys)], (4, 4), settings), expected, atol=1e-5)


class TestLabels:
    def test_ties_go_to_the_first_class_and_background_wins_its_tie(self) -> None:
        refined = torch.ones(2, 2, 2)
        settings = some_settings(score_threshold=0.0, background_threshold=0.1, normalize_maps=False)
        assert labels_of(refined, torch.tensor([1.0, 1.0]), (4, 4), settings).unique().tolist() == [1]

    def test_no_class_above_the_threshold_is_background(self) -> None:
        for background_threshold in (0.0, 0.5):
            settings = some_settings(score_threshold=1.0, background_threshold=background_threshold)
            labels = labels_of(torch.rand(3, 4, 4), torch.tensor([1.0, 0.5, 0.1]), (5, 7), settings)
            assert labels.shape == (5, 7)
            assert labels.unique().tolist() == [0]

    def test_a_flat_map_normalises_to_nothing(self) -> None:
        settings = some_settings(score_threshold=0.0, background_threshold=0.5, normalize_maps=True)
        assert labels_of(torch.ones(1, 2, 2), torch.tensor([1.0]), (4, 4), settings).unique().tolist() == [0]


class TestDiffusion:
    def model(self, folder: Path) -> DiffusionModel:
        return load_diffusion(find_diffusion(str(folder)), torch.zeros(1, 77, 8), CPU, torch.float32)

    def test_sizes_come_from_the_model_folder(self, tiny_diffusion: Path) -> None:
        model = self.model(tiny_diffusion)
        assert (model.side_px, model.latent_hw, model.timestep) == (128, (16, 16), 101)

    def test_the_unet_stops_after_the_last_attention(self, tiny_diffusion: Path) -> None:
        model = self.model(tiny_diffusion)
        transformers = model.unet.up_blocks[-1].attentions
        ran = []
        for name, module in {
            "attention 0": transformers[0],
            "query 1": transformers[1].transformer_blocks[0].attn1.to_q,
            "attention 1": transformers[1].transformer_blocks[0].attn1,
            "attention 2": transformers[2],
            "output": model.unet.conv_out,
        }.items():
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        layers = model.queries_and_keys(torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16))
        assert ran == ["attention 0", "query 1"]
        assert [query.shape for query, _ in layers] == [(1, 2, 256, 4)] * 2

    @pytest.mark.parametrize("linear", [True, False])
    def test_the_cut_unet_gives_what_the_whole_one_compares(self, linear: bool, tmp_path: Path) -> None:
        model = self.model(write_tiny_diffusion(tmp_path, linear=linear))
        inputs = torch.randn(2, 2, 4, 16, 16)
        compared = {}
        for layer in attention_layers(model.unet, (1, 0)):
            for projection in (layer.to_q, layer.to_k):
                projection.register_forward_hook(lambda module, _, output: compared.update({module: output}))
        prompt = model.empty_prompt.expand(2, -1, -1)
        noisy = model.scheduler.add_noise(inputs[0], inputs[1], torch.tensor([101]))
        model.unet(noisy, 101, encoder_hidden_states=prompt)
        expected = [(compared[layer.to_q], compared[layer.to_k]) for layer in attention_layers(model.unet, (1, 0))]
        for mine, whole in zip(model.queries_and_keys(*inputs), expected, strict=True):
            for part, other in zip(mine, whole, strict=True):
                assert torch.allclose(part.transpose(1, 2).flatten(2), other, atol=1e-6)

    def test_the_cut_unet_shares_its_weights(self, tiny_diffusion: Path) -> None:
        model = self.model(tiny_diffusion)
        whole = {parameter.data_ptr() for parameter in model.unet.parameters()}
        cut = {parameter.data_ptr() for parameter in model.cut_unet.plain.parameters()}
        assert cut < whole

    def test_the_decoder_is_not_kept(self, tiny_diffusion: Path) -> None:
        assert self.model(tiny_diffusion).vae.decoder is None


class TestText:
    def test_templates_are_averaged_between_two_normalisations(self, tiny_clip: Path) -> None:
        encode, tokenize = load_text_encoder(find_clip(f"local-dir:{tiny_clip}"), CPU)
        ours = embed_phrases(encode, tokenize, ["cat", "a dog"], ["{}.", "a photo of a {}."])
        for row, phrase in zip(ours, ["cat", "a dog"], strict=True):
            encodings = encode(tokenize([f"{phrase}.", f"a photo of a {phrase}."]))
            mean = torch.stack([e / e.norm() for e in encodings]).mean(dim=0)
            assert torch.allclose(row, mean / mean.norm(), atol=1e-5)

    def test_braces_in_a_phrase_are_text(self, tiny_clip: Path) -> None:
        encode, tokenize = load_text_encoder(find_clip(f"local-dir:{tiny_clip}"), CPU)
        assert embed_phrases(encode, tokenize, ["{0} {}"], ["a {}"]).shape == (1, 16)

    def test_template_sets(self) -> None:
        assert {name: len(templates) for name, templates in TEMPLATE_SETS.items()} == {
            "car": 15,
            "openai_imagenet_80": 80,
            "maskclip_85": 85,
        }
        assert all("{}" in template for templates in TEMPLATE_SETS.values() for template in templates)

    @pytest.mark.parametrize(("text", "message"), [("", "no template"), ("# a\na {}\nb", "line 3 has no {}")])
    def test_wrong_templates(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_templates(text)


class TestSettings:
    def test_encoder_defaults_follow_the_patch_size(self) -> None:
        assert encoder_defaults(14, 24) == VIT_L_14
        assert encoder_defaults(16, 12) == encoder_defaults(32, 12) == VIT_B_16
        assert encoder_defaults(14, 32) == VIT_B_16, "as in the official release's file for ViT-H/14"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"shorter_side_px": 0}, "shorter_side_px"),
            ({"logit_scale": -1.0}, "logit_scale"),
            ({"attention_threshold": 1.5}, "attention_threshold"),
            ({"score_threshold": float("nan")}, "score_threshold"),
            ({"head": -1}, "head"),
            ({"sliding_crop_px": 112}, "sliding_crop_px has no effect without windows"),
            ({"scales": ()}, "scales must be one factor or several different ones"),
            ({"scales": (1.0, 1.0)}, "scales must be one factor or several different ones"),
            ({"scales": (1.0, 5.0)}, "each of scales must be between 0.25 and 4.0, not 5.0"),
        ],
    )
    def test_values_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            some_settings(**changes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"select_layer": 12}, "select_layer must be between -12 and 11"),
            ({"select_layer": -12, "preset": "paper"}, "between -11 and 10"),
            ({"windows": "average", "sliding_crop_px": 225}, "do not fall on the"),
        ],
    )
    def test_values_that_do_not_fit_the_encoder(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            some_settings(**changes).check_encoder(blocks=12, patch_size_px=16)


class TestEncoders:
    def test_text_tower_is_never_read_with_the_image_tower(self, tiny_clip: Path) -> None:
        model = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), CPU, torch.float32).model
        assert not any("token_embedding" in name for name, _ in model.named_parameters())
        assert all(parameter.device == CPU for parameter in model.parameters())

    @pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14", "ViT-H-14"])
    def test_towers_of_the_papers_encoders_are_supported(self, name: str) -> None:
        with torch.device("meta"):
            take_apart(open_clip.CLIP(**open_clip.get_model_config(name)).visual)

    def test_other_towers_are_refused(self) -> None:
        with torch.device("meta"):
            model = open_clip.CLIP(**open_clip.get_model_config("RN50"))
        with pytest.raises(ValueError, match="has no plain vision transformer"):
            take_apart(model.visual)
