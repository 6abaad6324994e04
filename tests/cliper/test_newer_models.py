"""Models with image towers of timm and tokenizers in files: found, refused, loaded, and used from end to end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from cliper import Labeler
from cliper.fetch import main as fetch
from cliper.loading import load_text_encoder, load_vision_tower
from cliper.models import ModelError, find_clip, known_clip
from cliper.settings import OPEN_VIT_B_16, VIT_B_16
from cliper.vision import merge_heads, trace
from schemas.errors import RequestError
from tests.cliper.test_models import COMMIT, put_in_hub_cache
from tests.support.corpora import jpeg
from tests.support.tiny import write_tiny_siglip

CPU = torch.device("cpu")
PROMPTS = ["A photo of a dog.", "zebra " * 20, ""]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_siglip(tmp_path_factory.mktemp("models") / "siglip")


@pytest.fixture
def changed(siglip: Path, tmp_path: Path) -> Callable[..., str]:
    """The name of a copy whose configuration has other values."""

    def change(part: str | None = None, **values: Any) -> str:
        folder = shutil.copytree(siglip, tmp_path / "changed", dirs_exist_ok=True)
        config = json.loads((folder / "open_clip_config.json").read_text())
        (config["model_cfg"][part] if part else config["model_cfg"]).update(values)
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        return f"local-dir:{folder}"

    return change


def test_a_folder_is_found_with_what_suits_it(siglip: Path) -> None:
    spec = find_clip(f"local-dir:{siglip}")
    assert (spec.patch_size_px, spec.blocks, spec.has_tokenizer) == (16, 9, True)
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)
    assert spec.defaults == VIT_B_16
    assert spec.open_defaults == OPEN_VIT_B_16
    assert spec.open_defaults.measured == ""


def test_the_revision_follows_the_tokenizer(changed: Callable[..., str], siglip: Path) -> None:
    name = changed()
    before = find_clip(name).revision
    assert before == find_clip(f"local-dir:{siglip}").revision
    path = Path(name.removeprefix("local-dir:")) / "tokenizer.json"
    path.write_text(path.read_text().replace("dog", "cat"))
    assert find_clip(name).revision != before


def test_texts_are_embedded_as_open_clip_does(siglip: Path) -> None:
    spec = find_clip(f"local-dir:{siglip}")
    encode, tokenize = load_text_encoder(spec, CPU)
    theirs = open_clip.create_model(f"local-dir:{siglip}").eval()
    tokens = tokenize(PROMPTS)
    assert torch.equal(tokens, open_clip.get_tokenizer(f"local-dir:{siglip}")(PROMPTS))
    assert tokens[0].tolist() == [30, 31, 32, 30, 33, *[1] * 11], "cleaned, ended and filled up"
    with torch.inference_mode():
        assert torch.equal(encode(tokens), theirs.encode_text(tokens))


@pytest.mark.parametrize(
    ("vision", "pool"),
    [
        ("test_vit3", "map"),
        ("eva02_tiny_patch14_224", "token"),
        ("vit_pe_core_tiny_patch16_384", "map"),
    ],
)
def test_image_towers_are_loaded_whole(vision: str, pool: str, tmp_path: Path) -> None:
    """Also what no weights file has: rotary positions, and EVA's bias of keys."""
    folder = write_tiny_siglip(tmp_path, vision, pool)
    tower = load_vision_tower(find_clip(f"local-dir:{folder}"), CPU, torch.float32)
    theirs = open_clip.create_model(f"local-dir:{folder}").visual.eval()
    pixels = torch.randn(1, 3, *theirs.trunk.patch_embed.img_size)
    with torch.inference_mode():
        assert torch.equal(tower.model(pixels), theirs(pixels))
        traced = trace(tower, pixels, "paper", keep_attention=False)
        last = tower.blocks[-1]
        query, key, value = last.attention.qkv(last.before_attention(traced.features[-1]), traced.rotation)
        mixed = merge_heads(torch.nn.functional.scaled_dot_product_attention(query, key, value))
        found = theirs.trunk.norm(last.finish(traced.features[-1], mixed))
        assert torch.allclose(found, theirs.trunk.forward_features(pixels), atol=1e-4)


def test_half_precision_keeps_rotary_positions_exact(tmp_path: Path) -> None:
    folder = write_tiny_siglip(tmp_path, "eva02_tiny_patch14_224", "token")
    spec = find_clip(f"local-dir:{folder}")
    exact, half = (load_vision_tower(spec, CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.bfloat16
    rotations = [tower.parts.rotation((3, 5)) for tower in (half, exact)]
    assert rotations[0] is not None
    assert rotations[1] is not None
    assert torch.equal(rotations[0], rotations[1])
    pixels = torch.randn(1, 3, 42, 70)
    ours, theirs = (trace(tower, pixels, "release", True).features[-1].float() for tower in (half, exact))
    assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_images_are_labelled_from_end_to_end(siglip: Path) -> None:
    settings: dict[str, Any] = {
        "diffusion": "none",
        "compensation": "none",
        "shorter_side_px": 112,
        "score_threshold": 0.0,
    }
    words = ["dog", "thing"]
    result = Labeler(words, clip=f"local-dir:{siglip}", preset="release", templates="car", **settings)(jpeg(1))
    assert result.scores.keys() == set(words)
    assert all(0 < score < 10 for score in result.scores.values())
    assert result.annotations


REFUSED: list[tuple[str | None, dict[str, Any], str]] = [
    ("vision_cfg", {"timm_model_name": "convnext_tiny"}, r"no plain transformer over patches \(convnext_tiny\)"),
    ("vision_cfg", {"timm_model_name": "hf-hub:somebody/anything"}, "no plain transformer over patches"),
    ("vision_cfg", {"timm_model_name": ["test_vit3"]}, "no plain transformer over patches"),
    ("vision_cfg", {"timm_model_pretrained": True}, r"names weights beside its own \(timm_model_pretrained\)"),
    ("vision_cfg", {"timm_pool": "avg"}, r"cannot be used: pools its patches .* \(avg\)"),
    ("vision_cfg", {"timm_model_name": "vit_small_patch14_dinov3"}, "no plain transformer over patches"),
    ("vision_cfg", {"timm_pool": 5}, "has an image tower that cannot be used"),
    ("text_cfg", {"hf_model_name": "somebody/anything"}, r"text tower of another library \(hf_model_name\)"),
    ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}, r"options of its own \(trust_remote_code\)"),
]


@pytest.mark.parametrize(("part", "values", "reason"), REFUSED, ids=[str(values) for _, values, _ in REFUSED])
def test_what_cannot_be_used_is_refused(
    part: str, values: dict[str, Any], reason: str, changed: Callable[..., str]
) -> None:
    with pytest.raises(ModelError, match=reason):
        find_clip(changed(part, **values))


BAD_TOKENIZERS: list[tuple[str, str | None, str]] = [
    ("tokenizer.json", None, r"has no file tokenizer\.json: put its tokenizer beside its weights"),
    ("tokenizer_config.json", None, r"has no file tokenizer_config\.json"),
    ("tokenizer.json", "{", "cannot be loaded"),
    ("tokenizer_config.json", "[]", r"tokenizer_config\.json names no pad_token"),
    ("tokenizer_config.json", '{"pad_token": "<unheard>"}', "names no pad_token of its tokenizer"),
    ("tokenizer_config.json", '{"pad_token": "</s>", "padding_side": "above"}', "cannot be loaded"),
]


@pytest.mark.parametrize(("file", "content", "reason"), BAD_TOKENIZERS, ids=[str(case[:2]) for case in BAD_TOKENIZERS])
def test_bad_tokenizers_are_one_sentence(
    file: str, content: str | None, reason: str, changed: Callable[..., str]
) -> None:
    name = changed()
    path = Path(name.removeprefix("local-dir:")) / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ModelError, match=reason):
        load_text_encoder(find_clip(name), CPU)


def test_a_tokenizer_of_another_text_tower_is_one_sentence(changed: Callable[..., str]) -> None:
    name = changed("text_cfg", vocab_size=20)
    folder = Path(name.removeprefix("local-dir:"))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["text.token_embedding.weight"] = weights["text.token_embedding.weight"][:20].clone()
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(RequestError, match="has a tokenizer with tokens that its text tower lacks"):
        Labeler(["dog"], clip=name, diffusion="none", compensation="none")


def test_tokenizers_come_from_the_weights_repository(
    siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the hub's cache without a network, at the commit of the weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    full, _, pretrained = known_clip("ViT-B-16-SigLIP:webli")
    repository = "/".join(pretrained["hf_hub"].split("/")[:2])
    put_in_hub_cache(tmp_path, repository, siglip)
    spec = find_clip(full)
    assert (spec.revision, spec.repository) == (COMMIT, repository)
    assert spec.tokenizer_folder() == tmp_path / "hub" / f"models--{repository.replace('/', '--')}/snapshots/{COMMIT}"
    fetch(full, "")
    assert capsys.readouterr().out == ""
