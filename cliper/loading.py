"""Loading models that were found: each only the parts that are needed, from safetensors files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float
from open_clip.tokenizer import get_clean_fn
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from cliper.diffusion import (
    DiffusionModel,
    check_schedule,
    check_unet,
    count_heads,
    input_side_px,
    pooled_width,
)
from cliper.models import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    ClipSpec,
    DiffusionSpec,
    ModelError,
    explaining,
    image_tower,
    without,
    without_image_tower,
)
from cliper.settings import DIFFUSION_LAYERS, DIFFUSION_TIMESTEP, MethodSettings
from cliper.vision import VisionTower

EMPTY_PROMPT_FILE = "empty_prompt.safetensors"
CLIP_WORDS = 49408
"""Size of open_clip's own vocabulary, which its text towers have unless they say otherwise."""


def check_diffusion(spec: DiffusionSpec, settings: MethodSettings) -> tuple[int, int]:
    """Check from its configuration alone that a diffusion model can serve the settings.

    Returns:
        The side of its square input in pixels, and the number of heads that compensation can use.

    Raises:
        ModelError: its UNet is of another kind, or lacks the layers or the head asked for.
    """
    with explaining(f"diffusion model {spec.name!r} cannot be used"):
        unet = UNet2DConditionModel.load_config(**spec.source(), subfolder="unet")
        vae = AutoencoderKL.load_config(**spec.source(), subfolder="vae")
        check_schedule(DDPMScheduler.load_config(**spec.source(), subfolder="scheduler"), settings.diffusion_timestep)
        with torch.device("meta"):
            model = UNet2DConditionModel.from_config(unet)
        if "block_out_channels" not in vae:
            raise ValueError("the autoencoder's configuration has no block_out_channels")
        check_unet(model.config, vae)
        heads = count_heads(model, settings.diffusion_layers)
        settings.check_head(heads)
        return input_side_px(model.config, vae), heads


def load_vision_tower(spec: ClipSpec, device: torch.device, dtype: torch.dtype) -> VisionTower:
    """Load the image tower alone; the text tower's weights are never read.

    Raises:
        ModelError: the weights do not fit the architecture, or the tower is of another kind.
    """
    with explaining(f"CLIP model {spec.name!r} cannot be loaded"):
        model = image_tower(spec.model_cfg)
        with safe_open(spec.weights(), framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith("visual.")]  # noqa: SIM118 (not a dict)
            weights = {key.removeprefix("visual."): file.get_tensor(key) for key in keys}
        model.load_state_dict(weights, assign=True)
        compute_buffers(model)
    return VisionTower(model.to(device, dtype).eval().requires_grad_(False), spec.mean, spec.std)


def compute_buffers(model: nn.Module) -> None:
    """Give memory to what no weights file has, and let timm compute it (rotary positions, zeros)."""
    for module in model.modules():
        if missing := {name: of for name, of in module.named_buffers(recurse=False) if of.is_meta}:
            for name, buffer in missing.items():
                module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
            cast(Any, module).init_non_persistent_buffers()


def load_text_encoder(
    spec: ClipSpec, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Callable[[list[str]], Tensor]]:
    """CLIP's text tower and its tokeniser, in float32.

    Raises:
        ModelError: the weights do not fit the architecture, or the tokeniser cannot be read.
    """
    with explaining(f"CLIP model {spec.name!r} cannot be loaded"):
        if spec.model_cfg.get("custom_text"):
            model = open_clip.CustomTextCLIP(**without_image_tower(spec.model_cfg))
            with safe_open(spec.weights(), framework="pt") as file:
                keys = [key for key in file.keys() if key.startswith("text.")]  # noqa: SIM118 (not a dict)
                model.text.load_state_dict({key.removeprefix("text."): file.get_tensor(key) for key in keys})
        else:
            model = open_clip.CLIP(**without("custom_text", spec.model_cfg))
            model.load_state_dict(load_file(spec.weights()))
        tokenize = load_tokenizer(spec)
    model = model.to(device).eval().requires_grad_(False)
    return lambda tokens: model.encode_text(tokens.to(device)).cpu(), tokenize


def load_tokenizer(spec: ClipSpec) -> Callable[[list[str]], Tensor]:
    """open_clip's own tokeniser, or the one in the model's ``tokenizer.json``.

    That file is followed as it is. The class that ``tokenizer_config.json`` names is not looked for; from there is only
    the token that fills prompts up to the context length.

    Raises:
        OSError, ValueError: the files are missing or damaged, or name no such token.
    """
    text = spec.model_cfg["text_cfg"]
    context = text.get("context_length", 77)
    if not spec.has_tokenizer:
        return open_clip.SimpleTokenizer(context_length=context)
    folder = spec.tokenizer_folder()
    tokenizer = Tokenizer.from_buffer((folder / TOKENIZER).read_bytes())
    tokenizer.enable_truncation(context)
    tokenizer.enable_padding(**padding(tokenizer, folder / TOKENIZER_CONFIG), length=context)
    clean = get_clean_fn(text.get("tokenizer_kwargs", {}).get("clean", "whitespace"))

    def tokenize(prompts: list[str]) -> Tensor:
        tokens = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch([clean(of) for of in prompts])])
        if tokens.max() >= text.get("vocab_size", CLIP_WORDS):
            raise ModelError(f"CLIP model {spec.name!r} has a tokenizer with tokens that its text tower lacks")
        return tokens

    return tokenize


def padding(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """How prompts are filled up, from ``tokenizer_config.json``."""
    config = json.loads(path.read_text(encoding="utf-8"))
    token = config.get("pad_token") if isinstance(config, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    number = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        raise ValueError(f"{path.name} names no pad_token of its tokenizer")
    return {"direction": config.get("padding_side", "right"), "pad_id": number, "pad_token": token}


def load_diffusion(
    spec: DiffusionSpec,
    empty_prompt: Float[Tensor, "1 text_tokens text_width"],
    device: torch.device,
    dtype: torch.dtype,
    timestep: int = DIFFUSION_TIMESTEP,
    layers: tuple[int, ...] = DIFFUSION_LAYERS,
) -> DiffusionModel:
    """Load autoencoder, UNet and noise schedule; the autoencoder's decoder is dropped. Of the schedule, whatever its
    kind, only the betas are used, which all kinds make alike.

    Raises:
        ModelError: a part cannot be read or is of another kind.
    """
    with explaining(f"diffusion model {spec.name!r} cannot be loaded"):
        options = {"use_safetensors": True, "low_cpu_mem_usage": False}
        vae_dtype = autoencoder_dtype(dtype, device)
        vae = AutoencoderKL.from_pretrained(**spec.source(), subfolder="vae", torch_dtype=vae_dtype, **options)
        unet = UNet2DConditionModel.from_pretrained(**spec.source(), subfolder="unet", torch_dtype=dtype, **options)
        scheduler = DDPMScheduler.from_pretrained(**spec.source(), subfolder="scheduler")
    vae.decoder = vae.post_quant_conv = None
    vae, unet = (part.to(device).eval().requires_grad_(False) for part in (vae, unet))
    return DiffusionModel(vae, unet, scheduler, empty_prompt, timestep, layers)


def autoencoder_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Stable Diffusion's autoencoder can overflow in fp16: it gets bf16 then, or fp32 from GPUs that know no bf16."""
    if dtype != torch.float16:
        return dtype
    known = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if known else torch.float32


@torch.inference_mode()
def embed_empty_prompt(spec: DiffusionSpec) -> Float[Tensor, "1 text_tokens text_width"]:
    """The empty prompt's embedding: from ``empty_prompt.safetensors`` in the folder, else from the text encoder.

    A folder without a text encoder holds a UNet that was trained without text: zeros stand for the empty prompt. So
    they do for SDXL (``force_zeros_for_empty_prompt``).

    Raises:
        ModelError: the text encoder is announced but cannot be read.
    """
    with explaining(f"diffusion model {spec.name!r} has no usable text encoder"):
        if spec.folder is not None and (Path(spec.folder) / EMPTY_PROMPT_FILE).is_file():
            return load_file(Path(spec.folder) / EMPTY_PROMPT_FILE)["empty_prompt"]
        unet = UNet2DConditionModel.load_config(**spec.source(), subfolder="unet")
        trained_without_text = spec.folder is not None and not has_text_encoder(Path(spec.folder))
        if trained_without_text or pooled_width(unet) is not None:
            return torch.zeros(1, 77, unet.get("cross_attention_dim"))
        tokenizer = CLIPTokenizer.from_pretrained(**spec.source(), subfolder="tokenizer")
        encoder = CLIPTextModel.from_pretrained(**spec.source(), subfolder="text_encoder", use_safetensors=True).eval()
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    return encoder(tokens.input_ids)[0].float()


def has_text_encoder(folder: Path) -> bool:
    part, index = folder / "text_encoder", folder / "model_index.json"
    return part.is_dir() or (index.is_file() and part.name in json.loads(index.read_text(encoding="utf-8")))


def usable_gpus() -> list[str]:
    """Name and memory of each, after a sum on each of them; none if there is no driver or it is too old.

    Raises:
        RuntimeError: a GPU is there and does not work.
    """
    for index in range(torch.cuda.device_count()):
        torch.ones(8, device=f"cuda:{index}").sum().item()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{device.name} {device.total_memory / 1e9:.0f} GB" for device in found]


def cuda_version() -> str:
    """The CUDA version that torch was built for; empty without."""
    return torch.version.cuda or ""
