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
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError
from open_clip.pretrained import get_pretrained_cfg
from safetensors import SafetensorError

from cliper.published import ENCODERS
from cliper.settings import OPEN_MEASURED, EncoderDefaults, OpenDefaults, encoder_defaults, open_defaults

LOCAL_PREFIX = "local-dir:"
DEMO = "demo"
DEMO_MODEL = Path(__file__).parent / "demo_model"
"""The models that come with the package: small, trained on a drawn world (docs/demo-model.md)."""
CLIP_WEIGHTS = "open_clip_model.safetensors"
CLIP_CONFIG = "open_clip_config.json"
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
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    defaults: EncoderDefaults
    open_defaults: OpenDefaults
    folder: str | None = None
    repository: str | None = None
    pretrained: str = ""

    @property
    def patch_size_px(self) -> int:
        return int(self.model_cfg["vision_cfg"]["patch_size"])

    @property
    def blocks(self) -> int:
        return int(self.model_cfg["vision_cfg"]["layers"])

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
        name: ``ViT-L-14``, ``ViT-L/14``, ``ViT-H-14:laion2b_s32b_b79k`` (architecture and open_clip's pretraining tag),
            each with ``@REVISION`` if wanted, ``local-dir:PATH`` with an open_clip model folder, or ``demo``.

    Raises:
        ModelError: no such model, not reachable, or not one that the method can take apart.
    """
    if name == DEMO:
        return find_local_clip(name, DEMO_MODEL / "clip")
    if name.startswith(LOCAL_PREFIX):
        return find_local_clip(name, Path(name.removeprefix(LOCAL_PREFIX)).expanduser().resolve())
    identifier, revision = split_revision(name)
    weights, model_cfg, pretrained = known_clip(identifier)
    repository = "/".join(pretrained["hf_hub"].split("/")[:2])
    commit = hub_commit(f"CLIP model {name!r}", repository, revision)
    measured = {"measured": OPEN_MEASURED} if ENCODERS.get(weights) == "ViT-B/16" else {}
    return clip_spec(
        name, commit, model_cfg, pretrained, {"cliper_open": measured}, repository=repository, pretrained=weights
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
            f"ViT-L-14 or ViT-H-14:laion2b_s32b_b79k, local-dir:FOLDER, or demo"
        )
    check_architecture(name, model_cfg)
    return f"{architecture}:{tag}", model_cfg | {"quick_gelu": bool(pretrained.get("quick_gelu"))}, pretrained


def find_local_clip(name: str, folder: Path) -> ClipSpec:
    for required in (CLIP_CONFIG, CLIP_WEIGHTS):
        if not (folder / required).is_file():
            raise ModelError(f"CLIP model {name!r} has no file {required}: give an open_clip model folder")
    try:
        config = json.loads((folder / CLIP_CONFIG).read_text(encoding="utf-8"))
        check_architecture(name, config["model_cfg"])
        digest = folder_digest(folder, [CLIP_CONFIG, CLIP_WEIGHTS])
        pixels = config.get("preprocess_cfg", {})
        return clip_spec(name, digest, config["model_cfg"], pixels, config, folder=str(folder))
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"CLIP model {name!r} has an unreadable {CLIP_CONFIG}: {error!r}") from error


def clip_spec(
    name: str, revision: str, model_cfg: dict[str, Any], pixels: dict[str, Any], config: dict[str, Any], **place: str
) -> ClipSpec:
    """A model with OpenAI's pixel statistics and the encoder's settings, except for what is given."""
    mean = channels(pixels.get("mean") or open_clip.OPENAI_DATASET_MEAN)
    std = channels(pixels.get("std") or open_clip.OPENAI_DATASET_STD)
    patch_size_px, blocks = (model_cfg["vision_cfg"][key] for key in ("patch_size", "layers"))
    defaults = EncoderDefaults(**(vars(encoder_defaults(patch_size_px, blocks)) | config.get("cliper_defaults", {})))
    for_any_words = OpenDefaults(**(vars(open_defaults(patch_size_px)) | config.get("cliper_open", {})))
    return ClipSpec(name, revision, model_cfg, mean, std, defaults, for_any_words, **place)


def channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def check_architecture(name: str, model_cfg: dict[str, Any]) -> None:
    """Refuse what the method cannot take apart, and towers and tokenizers of other libraries: they would be fetched.

    Raises:
        ModelError: one of these.
    """
    vision, text = model_cfg["vision_cfg"], model_cfg.get("text_cfg", {})
    if "patch_size" not in vision or not isinstance(vision.get("layers"), int) or "timm_model_name" in vision:
        raise ModelError(f"CLIP model {name!r} has no plain vision transformer: use a ViT such as ViT-B-16 or ViT-L-14")
    if not (isinstance(vision["patch_size"], int) and 1 <= vision["patch_size"] <= LARGEST_PATCH_PX):
        raise ModelError(f"CLIP model {name!r} has patches of {vision['patch_size']!r} pixels")
    if pooling := [key for key in ("attentional_pool", "final_ln_after_pool") if vision.get(key)]:
        raise ModelError(f"CLIP model {name!r} pools its patches in a way that leaves no dense features ({pooling[0]})")
    if foreign := sorted(key for key in text if key.startswith(("hf_", "tokenizer_"))):
        raise ModelError(f"CLIP model {name!r} has a text tower or tokenizer of another library ({foreign[0]})")


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
