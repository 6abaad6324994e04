"""Small models with random weights, in the folders that the job reads: for tests of plumbing and arithmetic."""

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from timm.models import save_for_hf
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from cliper.diffusion import stable_diffusion_scheduler
from tests.support.towers import randomised


def write_tiny_clip(
    folder: Path, patch: int = 16, layers: int = 4, trained_px: int = 112, quick_gelu: bool = True, seed: int = 0
) -> Path:
    """An open_clip model folder: image tower of width 32 with two heads, text tower of width 8."""
    model_cfg = {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": trained_px,
            "layers": layers,
            "width": 32,
            "head_width": 16,
            "patch_size": patch,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**model_cfg)
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            if parameter.ndim > 1:  # the default initialisation is nearly constant: attention would be uniform
                parameter.normal_(std=0.4 if "positional" in name else 1.5 * parameter.shape[-1] ** -0.5)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def write_tiny_siglip(folder: Path, vision: str = "test_vit3", pool: str = "map", seed: int = 0) -> Path:
    """The same of the kind of SigLIP: an image tower of timm, a text tower of its own, and a tokenizer in a file.

    ``test_vit3``: nine blocks of width 96 with layer scale, a register, no class token, a pooling head.
    """
    width, projection = (96, "none") if vision == "test_vit3" else (16, None)
    model_cfg: dict[str, Any] = {
        "embed_dim": width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": vision, "timm_pool": pool, "timm_proj": projection},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 40,
            "hf_tokenizer_name": "nobody/knows",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 8,
            "heads": 2,
            "layers": 1,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }
    torch.manual_seed(seed)
    model = open_clip.CustomTextCLIP(**{name: value for name, value in model_cfg.items() if name != "custom_text"})
    randomised(model.visual)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    write_tiny_tokenizer(folder)
    return folder


def write_tiny_tokenizer(folder: Path) -> None:
    """A tokenizer as T5's: pieces of words with their probabilities, and an end that also fills up."""
    letters = [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = [(f"▁{word}", -2.0) for word in ("a", "photo", "of", "dog", "thing")]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *letters, *words]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"extra_ids": 0}))


def write_tiny_diffusion(folder: Path, seed: int = 0, linear: bool = True, **changes: Any) -> Path:
    """A diffusers folder for images of 128 x 128: latents of 16 x 16, two heads of 256 positions a layer.

    Args:
        linear: as Stable Diffusion 2; else as 1.
        changes: of the UNet's configuration.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.18215,
        sample_size=128,
    )
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "use_linear_projection": linear,
    }
    unet = UNet2DConditionModel(**config | changes)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                parameter.normal_(std=1.0)
    scheduler = stable_diffusion_scheduler()
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def write_tiny_timm(folder: Path, name: str, **changes: Any) -> Path:
    """A folder as timm writes it: two blocks of width 32 with two heads, for patches of 8 pixels."""
    torch.manual_seed(3)
    arguments = {"patch_size": 8, "img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2} | changes
    model = timm.create_model(name, num_classes=0, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    save_for_hf(model, folder, safe_serialization=True)
    return folder
