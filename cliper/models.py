"""Finding and loading models: by name from the model hub, pinned to a commit, or from a local folder.

Weights are read from safetensors files only; nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError
from open_clip.pretrained import get_pretrained_cfg
from safetensors import SafetensorError
from timm.models import is_model_in_modules
from torch import nn

from cliper.published import ENCODERS
from cliper.settings import OPEN_MEASURED, EncoderDefaults, OpenDefaults, encoder_defaults, open_defaults
from cliper.towers import PLAIN_TOWERS, take_apart

LOCAL_PREFIX = "local-dir:"
DEMO = "demo"
DEMO_MODEL = Path(__file__).parent / "demo_model"
"""The models that come with the package: small, trained on a drawn world (docs/demo-model.md)."""
CLIP_WEIGHTS = "open_clip_model.safetensors"
CLIP_CONFIG = "open_clip_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG)
TIMM_MODULES = ("vision_transformer", "eva")
"""timm's plain transformers over patches."""
SMALLEST_TEXT_TOWER = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
SMALLEST_IMAGE_TOWER = {"image_size": 1, "patch_size": 1, "width": 64, "layers": 1}
DEFAULT_CLIP_TAGS = {
    "ViT-B-32": "openai",
    "ViT-B-16": "openai",
    "ViT-L-14": "openai",
    "ViT-L-14-336": "openai",
    "ViT-H-14": "laion2b_s32b_b79k",
    "ViT-g-14": "laion2b_s34b_b88k",
}
DIFFUSION_PARTS = ("vae", "unet", "scheduler")
LARGEST_PATCH_PX = 64
UNUSABLE = (OSError, SafetensorError, AssertionError, RuntimeError, TypeError, ValueError)
"""What the hub, safetensors and the models' libraries raise for models that do not exist, do not fit or are damaged.
torch, open_clip and timm assert that a layer's width fits its number of heads."""


class ModelError(ValueError):
    """A model cannot be found or used; the message is one sentence for the user."""


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Turns what goes wrong with a model (`UNUSABLE`) into a ModelError, one sentence that begins with ``what``."""
    try:
        yield
    except UNUSABLE as error:
        raise ModelError(f"{what}: {one_line(error)}") from error


@dataclass(frozen=True)
class ClipSpec:
    """A CLIP model that was found.

    Attributes:
        name: as the user gave it.
        revision: the hub's commit, or ``sha256:...`` over a local folder's files; the same name and revision are
            the same weights.
        model_cfg: open_clip's architecture settings.
        patch_size_px, blocks: of the image tower.
        mean, std: per channel, of pixels in 0 to 1.
        defaults: settings of the method that suit the model: from ``cliper_defaults`` in a local folder's
            ``open_clip_config.json``, else the published ones.
        open_defaults: the same for preset ``open``, from ``cliper_open``.
        folder: local folder; None for a model of the hub.
        repository: the hub's repository; None for a local folder.
        pretrained: open_clip's architecture and pretraining tag, with a colon between; empty for a local folder.
    """

    name: str
    revision: str
    model_cfg: dict[str, Any]
    patch_size_px: int
    blocks: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    defaults: EncoderDefaults
    open_defaults: OpenDefaults
    folder: str | None = None
    repository: str | None = None
    pretrained: str = ""

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer comes with the model; the others have that of open_clip."""
        return "hf_tokenizer_name" in self.model_cfg.get("text_cfg", {})

    def tokenizer_folder(self) -> Path:
        """Where `TOKENIZER_FILES` are, downloaded on first use on this machine."""
        if self.folder is not None:
            return Path(self.folder)
        assert self.repository is not None
        for file in TOKENIZER_FILES:
            path = hf_hub_download(self.repository, file, revision=self.revision)
        return Path(path).parent

    @property
    def heads(self) -> int:
        """Of each block."""
        vision = self.model_cfg["vision_cfg"]
        return int(vision.get("width", 768)) // int(vision.get("head_width", 64))

    def weights(self) -> Path:
        """The weights file, downloaded on first use on this machine."""
        if self.folder is not None:
            return Path(self.folder) / CLIP_WEIGHTS
        assert self.repository is not None
        return Path(hf_hub_download(self.repository, CLIP_WEIGHTS, revision=self.revision))


@dataclass(frozen=True)
class DiffusionSpec:
    """A diffusion model that was found, in diffusers' folder layout.

    Attributes:
        name: as the user gave it.
        revision: the hub's commit, or ``sha256:...`` over a local folder's files.
        folder: local folder; None for a model of the hub.
    """

    name: str
    revision: str
    folder: str | None

    def source(self) -> dict[str, Any]:
        """Arguments for diffusers' and transformers' ``from_pretrained``."""
        if self.folder is not None:
            return {"pretrained_model_name_or_path": self.folder, "local_files_only": True}
        return {"pretrained_model_name_or_path": split_revision(self.name)[0], "revision": self.revision}


def find_clip(name: str) -> ClipSpec:
    """Find a CLIP model without loading it.

    Args:
        name: ``ViT-L-14``, ``ViT-L/14``, ``PE-Core-B-16:meta`` (architecture and open_clip's pretraining tag), each
            with ``@REVISION`` if wanted, ``local-dir:PATH`` with an open_clip model folder, or ``demo``.

    Raises:
        ModelError: no such model, not reachable, or not one that the method can take apart.
    """
    if name == DEMO:
        return find_local_clip(name, DEMO_MODEL / "clip")
    if name.startswith(LOCAL_PREFIX):
        return find_local_clip(name, Path(name.removeprefix(LOCAL_PREFIX)).expanduser().resolve())
    identifier, revision = split_revision(name)
    weights, model_cfg, pretrained = known_clip(identifier)
    shape = tower_shape(name, model_cfg)
    repository = "/".join(pretrained["hf_hub"].split("/")[:2])
    commit = hub_commit(f"CLIP model {name!r}", repository, revision)
    measured = {"measured": OPEN_MEASURED} if ENCODERS.get(weights) == "ViT-B/16" else {}
    return clip_spec(
        name, commit, model_cfg, shape, pretrained, {"cliper_open": measured}, repository=repository, pretrained=weights
    )


def known_clip(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What open_clip says of an architecture with a pretraining tag. Nothing is downloaded.

    Args:
        name: ``ARCHITECTURE`` or ``ARCHITECTURE:TAG``.

    Returns:
        Its name in full, the architecture's settings with the activation of these weights, and the weights' settings.

    Raises:
        ModelError: open_clip does not know it, or it is not one that the method can take apart.
    """
    architecture, _, tag = name.replace("/", "-").partition(":")
    architecture = architecture.removesuffix("-quickgelu")  # the weights say which activation they need
    tag = tag or DEFAULT_CLIP_TAGS.get(architecture, "")
    model_cfg, pretrained = open_clip.get_model_config(architecture), get_pretrained_cfg(architecture, tag)
    if model_cfg is None or not pretrained or not pretrained.get("hf_hub"):
        raise ModelError(
            f"CLIP model {name!r} is unknown: use an open_clip architecture with a pretraining tag, such as "
            f"ViT-L-14 or ViT-B-16-SigLIP2:webli, local-dir:FOLDER, or demo"
        )
    check_architecture(name, model_cfg, pretrained["hf_hub"].split("/")[0])
    return f"{architecture}:{tag}", model_cfg | {"quick_gelu": bool(pretrained.get("quick_gelu"))}, pretrained


def find_local_clip(name: str, folder: Path) -> ClipSpec:
    for required in (CLIP_CONFIG, CLIP_WEIGHTS):
        if not (folder / required).is_file():
            raise ModelError(f"CLIP model {name!r} has no file {required}: give an open_clip model folder")
    try:
        config = json.loads((folder / CLIP_CONFIG).read_text(encoding="utf-8"))
        model_cfg = config["model_cfg"]
        check_architecture(name, model_cfg)
        shape = tower_shape(name, model_cfg)
        files = [CLIP_CONFIG, CLIP_WEIGHTS]
        if "hf_tokenizer_name" in model_cfg.get("text_cfg", {}):
            files += TOKENIZER_FILES
            if missing := [file for file in TOKENIZER_FILES if not (folder / file).is_file()]:
                raise ModelError(f"CLIP model {name!r} has no file {missing[0]}: put its tokenizer beside its weights")
        pixels = config.get("preprocess_cfg", {})
        return clip_spec(name, folder_digest(folder, files), model_cfg, shape, pixels, config, folder=str(folder))
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"CLIP model {name!r} has an unreadable {CLIP_CONFIG}: {error!r}") from error


def clip_spec(
    name: str,
    revision: str,
    model_cfg: dict[str, Any],
    shape: tuple[int, int],
    pixels: dict[str, Any],
    config: dict[str, Any],
    **place: str,
) -> ClipSpec:
    """A model with OpenAI's pixel statistics and the encoder's settings, except for what is given."""
    mean = channels(pixels.get("mean") or open_clip.OPENAI_DATASET_MEAN)
    std = channels(pixels.get("std") or open_clip.OPENAI_DATASET_STD)
    patch_size_px, blocks = shape
    defaults = EncoderDefaults(**(vars(encoder_defaults(patch_size_px, blocks)) | config.get("cliper_defaults", {})))
    for_any_words = OpenDefaults(**(vars(open_defaults(patch_size_px)) | config.get("cliper_open", {})))
    return ClipSpec(name, revision, model_cfg, patch_size_px, blocks, mean, std, defaults, for_any_words, **place)


def channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def check_architecture(name: str, model_cfg: dict[str, Any], owner: str | None = None) -> None:
    """Refuse what the method cannot take apart, and what would be fetched from other places than the weights.

    Args:
        name: as the user gave it.
        model_cfg: open_clip's architecture settings.
        owner: of the hub's repository with the weights; None for a local folder, whose tokenizer is in it.

    Raises:
        ModelError: one of these.
    """
    vision, text = model_cfg["vision_cfg"], model_cfg.get("text_cfg", {})
    if "timm_model_name" in vision:
        check_timm(name, vision)
    else:
        check_plain(name, vision)
    if foreign := sorted(key for key in text if key.startswith("hf_") and key != "hf_tokenizer_name"):
        raise ModelError(f"CLIP model {name!r} has a text tower of another library ({foreign[0]})")
    if unknown := sorted(text.get("tokenizer_kwargs", {}).keys() - {"clean"}):
        raise ModelError(f"CLIP model {name!r} has a tokenizer with options of its own ({unknown[0]})")
    tokenizer = text.get("hf_tokenizer_name")
    if tokenizer is not None and owner is not None and tokenizer.split("/")[0] != owner:
        raise ModelError(f"CLIP model {name!r} has a tokenizer that others publish than its weights ({tokenizer})")


def check_plain(name: str, vision: dict[str, Any]) -> None:
    """Raises ModelError: an image tower of open_clip's own that is no plain transformer."""
    if "patch_size" not in vision or not isinstance(vision.get("layers"), int):
        raise ModelError(f"CLIP model {name!r} has no plain vision transformer: use one {PLAIN_TOWERS}")
    if not (isinstance(vision["patch_size"], int) and 1 <= vision["patch_size"] <= LARGEST_PATCH_PX):
        raise ModelError(f"CLIP model {name!r} has patches of {vision['patch_size']!r} pixels")
    if pooling := [key for key in ("attentional_pool", "final_ln_after_pool") if vision.get(key)]:
        raise ModelError(f"CLIP model {name!r} pools its patches in a way that leaves no dense features ({pooling[0]})")


def check_timm(name: str, vision: dict[str, Any]) -> None:
    """Raises ModelError: an image tower of timm that is no plain transformer, or that would fetch other weights."""
    tower = vision["timm_model_name"]
    if not (isinstance(tower, str) and tower.isidentifier() and is_model_in_modules(tower, TIMM_MODULES)):
        raise ModelError(
            f"CLIP model {name!r} has an image tower that is no plain transformer over patches ({tower}): use one "
            f"{PLAIN_TOWERS}"
        )
    if vision.get("timm_model_pretrained"):
        raise ModelError(f"CLIP model {name!r} names weights beside its own (timm_model_pretrained)")


def tower_shape(name: str, model_cfg: dict[str, Any]) -> tuple[int, int]:
    """Patch size in pixels and number of blocks of an image tower that `check_architecture` let pass.

    Raises:
        ModelError: timm cannot build it, or the method's last block is not defined for it.
    """
    vision = model_cfg["vision_cfg"]
    if "timm_model_name" not in vision:
        return vision["patch_size"], vision["layers"]
    try:
        tower = take_apart(image_tower(model_cfg))
    except UNUSABLE as error:
        raise ModelError(f"CLIP model {name!r} has an image tower that cannot be used: {one_line(error)}") from error
    return tower.patch_size_px, len(tower.blocks)


def image_tower(model_cfg: dict[str, Any]) -> nn.Module:
    """The image tower without weights: on torch's device ``meta``, beside the smallest text tower."""
    with torch.device("meta"):
        return open_clip.CLIP(**without("custom_text", model_cfg | {"text_cfg": SMALLEST_TEXT_TOWER})).visual


def without_image_tower(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """Settings for `open_clip.CustomTextCLIP` with the smallest image tower."""
    return without("custom_text", model_cfg | {"vision_cfg": SMALLEST_IMAGE_TOWER})


def without(key: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


def check_index(name: str, path: Path) -> None:
    """Refuse an index of weights that names other files than safetensors beside it: they would be unpickled."""
    try:
        files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"diffusion model {name!r} has an unreadable {path.name}: {error!r}") from error
    for file in files:
        if not isinstance(file, str) or not file.endswith(".safetensors") or "/" in file:
            raise ModelError(f"diffusion model {name!r} names weights that are no safetensors: {file!r} in {path.name}")


def find_diffusion(name: str) -> DiffusionSpec:
    """Find a diffusion model without loading it.

    Args:
        name: a hub repository, with ``@REVISION`` if wanted, or a local folder (``local-dir:`` may stand in front)
            with ``vae``, ``unet`` and ``scheduler``; or ``demo``.

    Raises:
        ModelError: no such model, or not reachable.
    """
    folder = DEMO_MODEL / "diffusion" if name == DEMO else Path(name.removeprefix(LOCAL_PREFIX)).expanduser()
    if not name.startswith(LOCAL_PREFIX) and not folder.is_dir():
        repository, revision = split_revision(name)
        return DiffusionSpec(name, hub_commit(f"diffusion model {name!r}", repository, revision), folder=None)
    for part in DIFFUSION_PARTS:
        if not (folder / part).is_dir():
            raise ModelError(f"diffusion model {name!r} has no folder {part}/: give a folder in diffusers' layout")
        if part != "scheduler" and not list((folder / part).glob("*.safetensors")):
            raise ModelError(f"diffusion model {name!r} has no safetensors weights in {part}/")
        for index in (folder / part).glob("*.index*.json"):
            check_index(name, index)
    folder = folder.resolve()
    paths = (path for path in folder.rglob("*") if path.suffix in {".safetensors", ".json"})
    digest = folder_digest(folder, sorted(str(path.relative_to(folder)) for path in paths))
    return DiffusionSpec(name, digest, str(folder))


def split_revision(name: str) -> tuple[str, str | None]:
    identifier, _, revision = name.partition("@")
    return identifier, revision or None


def hub_commit(what: str, repository: str, revision: str | None) -> str:
    """The full commit that a branch, tag or commit of a hub repository stands for; from the cache when offline."""
    try:
        return str(HfApi().model_info(repository, revision=revision).sha)
    except Exception as online_error:  # which library's HTTP errors come out depends on the hub client's version
        try:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=[], local_files_only=True)).name
        except (OSError, HFValidationError):
            raise ModelError(
                f"{what} was not found: the model hub has no {repository} at this revision or cannot be reached "
                f"({type(online_error).__name__}), and no copy is in the local cache"
            ) from online_error


def folder_digest(folder: Path, files: list[str]) -> str:
    """One digest over the names and contents of a model folder's files."""
    digest = hashlib.sha256()
    for name in files:
        with (folder / name).open("rb") as file:
            digest.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def one_line(error: BaseException) -> str:
    """An error's message on one line of readable length."""
    return " ".join(str(error).split())[:300]
