"""Finding models: in local folders, and by name in a model hub's cache without a network."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from cliper.loading import check_diffusion, embed_empty_prompt, load_diffusion, load_text_encoder, load_vision_tower
from cliper.models import ModelError, find_clip, find_diffusion
from cliper.settings import VIT_B_16, MethodSettings
from tests.support.tiny import write_tiny_clip, write_tiny_diffusion

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_in_hub_cache(home: Path, repository: str, content: Path) -> None:
    """What downloading a repository's branch ``main`` leaves in the hub's cache."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(content, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


@pytest.fixture
def offline_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's client finds its cache here, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_revision_follows_the_files(tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    name = f"local-dir:{folder}"
    first = find_clip(name)
    assert find_clip(name) == first
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file(weights | {"visual.proj": weights["visual.proj"] + 1}, folder / "open_clip_model.safetensors")
    assert find_clip(name).revision != first.revision


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no file open_clip_model\.safetensors"):
        find_clip(f"local-dir:{folder}")


def test_models_of_other_libraries_are_not_fetched(tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "somebody/anything"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has a text tower of another library \(hf_model_name\)"):
        find_clip(f"local-dir:{folder}")


@pytest.mark.parametrize("size", [0, -16, 10**9, "16", None])
def test_patches_without_a_size_are_refused(size: object, tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["patch_size"] = size
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has patches of"):
        find_clip(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "diffusion_pytorch_model.bin"}}, "no safetensors: 'diffusion_pytorch_model.bin'"),
        ({"weight_map": {"a": "../../elsewhere.safetensors"}}, "no safetensors: '../../elsewhere.safetensors'"),
        ({"weight_map": []}, "unreadable"),
        ("[" * 100_000, "unreadable"),
    ],
)
def test_an_index_may_name_safetensors_only(index: object, message: str, tmp_path: Path) -> None:
    folder = write_tiny_diffusion(tmp_path)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(ModelError, match=message):
        find_diffusion(str(folder))


@pytest.mark.parametrize(
    "config",
    ["{", "[]", "{}", "[" * 100_000, '{"model_cfg": {}}', '{"model_cfg": {"vision_cfg": {"timm_model_name": "x"}}}'],
)
def test_unreadable_configurations_are_refused(config: str, tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    (folder / "open_clip_config.json").write_text(config)
    with pytest.raises(ModelError, match="CLIP model"):
        find_clip(f"local-dir:{folder}")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 64
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    spec = find_clip(f"local-dir:{folder}")
    for load in (lambda: load_vision_tower(spec, CPU, torch.float32), lambda: load_text_encoder(spec, CPU)):
        with pytest.raises(ModelError, match="cannot be loaded"):
            load()


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["head_width"] = 5
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_vision_tower(find_clip(f"local-dir:{folder}"), CPU, torch.float32)


@pytest.mark.parametrize(("part", "key"), [("unet", "sample_size"), ("vae", "block_out_channels")])
def test_configurations_of_a_diffusion_model_may_lack_a_size(part: str, key: str, tmp_path: Path) -> None:
    """diffusers has defaults, and they may not fit."""
    folder = write_tiny_diffusion(tmp_path)
    config = json.loads((folder / part / "config.json").read_text())
    del config[key]
    (folder / part / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be used"):
        check_diffusion(find_diffusion(str(folder)), MethodSettings(**vars(VIT_B_16)))


def test_a_model_folder_may_bring_its_own_defaults(tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path)
    assert find_clip(f"local-dir:{folder}").defaults == VIT_B_16
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["cliper_defaults"] = {"shorter_side_px": 112, "logit_scale": 20.0}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    defaults = find_clip(f"local-dir:{folder}").defaults
    assert defaults == dataclasses.replace(VIT_B_16, shorter_side_px=112, logit_scale=20.0)
    config["cliper_defaults"] = {"colour": "red"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="colour"):
        find_clip(f"local-dir:{folder}")


def test_a_folder_without_text_encoder_has_zeros_for_the_empty_prompt(tmp_path: Path) -> None:
    folder = write_tiny_diffusion(tmp_path)
    assert torch.equal(embed_empty_prompt(find_diffusion(str(folder))), torch.zeros(1, 77, 8))
    (folder / "model_index.json").write_text(json.dumps({"text_encoder": ["transformers", "CLIPTextModel"]}))
    with pytest.raises(ModelError, match="no usable text encoder"):
        embed_empty_prompt(find_diffusion(str(folder)))


def test_a_ready_empty_prompt_is_used(tmp_path: Path) -> None:
    folder = write_tiny_diffusion(tmp_path)
    prompt = torch.randn(1, 77, 8)
    save_file({"empty_prompt": prompt}, folder / "empty_prompt.safetensors")
    assert torch.equal(embed_empty_prompt(find_diffusion(str(folder))), prompt)


def test_a_text_encoder_embeds_the_empty_prompt(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = write_tiny_diffusion(tmp_path)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    encoder = CLIPTextModel(config).eval()
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    ours = embed_empty_prompt(find_diffusion(str(folder)))
    with torch.no_grad():
        theirs = encoder(torch.tensor([[0] + [1] * 76])).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_an_unfit_unet_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    folder = write_tiny_diffusion(tmp_path)
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["up_block_types"] = ["UpBlock2D", "UpBlock2D"]
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has no CrossAttnUpBlock2D"):
        check_diffusion(find_diffusion(str(folder)), MethodSettings(**vars(VIT_B_16)))


def test_names_are_pinned_to_the_hubs_commit(offline_home: Path, tiny_clip: Path, tiny_diffusion: Path) -> None:
    put_in_hub_cache(offline_home, "timm/vit_base_patch16_clip_224.openai", tiny_clip)
    put_in_hub_cache(offline_home, "someone/tiny-diffusion", tiny_diffusion)
    clip = find_clip("ViT-B/16")
    assert clip.revision == COMMIT
    assert clip.weights().is_file()
    assert COMMIT in str(clip.weights())
    assert (clip.blocks, clip.patch_size_px, clip.model_cfg["quick_gelu"]) == (12, 16, True)
    diffusion = find_diffusion("someone/tiny-diffusion@main")
    assert diffusion.revision == COMMIT
    model = load_diffusion(diffusion, torch.zeros(1, 77, 8), torch.device("cpu"), torch.float32)
    assert model.side_px == 128


@pytest.mark.parametrize(("find", "name"), [(find_clip, "ViT-L-14"), (find_diffusion, "someone/nothing@v1")])
@pytest.mark.usefixtures("offline_home")
def test_names_that_cannot_be_reached_are_one_sentence(find: Callable[[str], object], name: str) -> None:
    with pytest.raises(ModelError, match="was not found: the model hub has no") as caught:
        find(name)
    assert "\n" not in str(caught.value)


def test_half_precision_keeps_the_autoencoder_out_of_fp16(tiny_diffusion: Path) -> None:
    spec = find_diffusion(str(tiny_diffusion))
    for dtype, vae_dtype in [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]:
        model = load_diffusion(spec, torch.zeros(1, 77, 8), CPU, dtype)
        assert (model.unet.dtype, model.vae.dtype) == (dtype, vae_dtype)
