"""Vision transformers of timm: built from a name or a folder, with weights from safetensors files only."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Float
from safetensors.torch import load_file
from timm.models.vision_transformer_sam import VisionTransformerSAM, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cliper.compensation import LayerQueriesAndKeys
from cliper.models import LOCAL_PREFIX, channels, explaining, folder_digest, hub_commit, split_revision
from cliper.vision import channel_statistics

CONFIG = "config.json"
TIMM_WEIGHTS = "model.safetensors"
KNOWN_NAME = "vit_base_patch8_224.dino"
ANY_SIZE = "dynamic_img_size"


@dataclass(frozen=True)
class TimmModel:
    """A vision transformer for inputs of any multiple of its patch size.

    Attributes:
        model: its weights are only read.
        mean, std: per channel, of pixels in 0 to 1, that the model was trained with.
    """

    model: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def patch_size_px(self) -> int:
        return square_patch_px(self.model)

    @property
    def weight(self) -> Tensor:
        """One of the weights: device and number format are those of all."""
        return next(self.model.parameters())

    @cached_property
    def statistics(self) -> Float[Tensor, "2 3 1 1"]:
        """See `channel_statistics`."""
        return channel_statistics(self.mean, self.std, self.weight.device)


def build_timm(name: str) -> tuple[nn.Module, Path | None]:
    """The model with random weights, and its folder if it is a local one. Raises one of `cliper.models.UNUSABLE`."""
    if not name.startswith(LOCAL_PREFIX):
        return create(name), None
    folder = Path(name.removeprefix(LOCAL_PREFIX)).expanduser()
    for required in (CONFIG, TIMM_WEIGHTS):
        if not (folder / required).is_file():
            raise ValueError(f"there is no file {required}: give a timm folder with safetensors")
    try:
        return create(f"{LOCAL_PREFIX}{folder}"), folder
    except KeyError as error:
        raise ValueError(f"{CONFIG} has no {error}") from error


def create(name: str) -> nn.Module:
    """timm's model without its classifier, which takes images of any size if its class can."""
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    any_size: dict[str, Any] = {ANY_SIZE: True}
    try:
        return timm.create_model(name, **options, **any_size)
    except TypeError as error:
        if ANY_SIZE not in str(error):
            raise
    model = timm.create_model(name, **options)
    if isinstance(model, VisionTransformerSAM):  # which resizes its positions in any case
        model.patch_embed.strict_img_size = False  # type: ignore[assignment]
    return model


def square_patch_px(model: nn.Module) -> int:
    """Raises ValueError: the model has no patches, or they are not square."""
    sides = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if sides is None or sides[0] != sides[1]:
        raise ValueError(f"it does not read square patches (as {KNOWN_NAME} does)")
    return int(sides[0])


def with_weights(model: nn.Module, file: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model with a file's weights. Every tensor of it must be there: timm's own loader falls back to pickled
    weights, and leaves tensors that a file lacks at random. Raises one of `cliper.models.UNUSABLE`.
    """
    model.load_state_dict({key: part for key, part in load_file(file).items() if not key.startswith("head.")})
    return model.to(device, dtype).eval().requires_grad_(False)


def pixel_statistics(model: nn.Module) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of the pixels that the model was trained with."""
    config = cast(dict[str, Any], model.pretrained_cfg)
    return channels(config["mean"]), channels(config["std"])


def hub_repository(model: nn.Module) -> str:
    """Raises ValueError: timm knows no weights of the model's name in the hub."""
    repository = cast(dict[str, Any], model.pretrained_cfg)["hf_hub_id"]
    if not repository:
        raise ValueError(f"the model hub has no weights under this name (there are some for {KNOWN_NAME})")
    return str(repository)


def download_weights(repository: str, revision: str | None = None) -> Path:
    """The weights file, downloaded on first use on this machine.

    Raises:
        OSError: the hub cannot be reached or has no safetensors file.
    """
    return Path(hf_hub_download(repository, TIMM_WEIGHTS, revision=revision))


@dataclass(frozen=True)
class TimmSpec:
    """A vision transformer of timm that was found, whose last self-attention can be read.

    Attributes:
        name: as the user gave it, without ``timm:``.
        revision: the hub's commit, or ``sha256:...`` over a local folder's files.
        patch_size_px, heads: of the model.
        folder: local folder; None for a model of the hub.
        repository: the hub's repository; None for a local folder.
    """

    name: str
    revision: str
    patch_size_px: int
    heads: int
    folder: str | None = None
    repository: str | None = None

    def weights(self) -> Path:
        """The weights file, downloaded on first use on this machine."""
        if self.folder is not None:
            return Path(self.folder) / TIMM_WEIGHTS
        assert self.repository is not None
        return download_weights(self.repository, self.revision)


def find_timm(name: str) -> TimmSpec:
    """Find a model without its weights, and check that its last self-attention is one of patches.

    Args:
        name: timm's name with a pretraining tag, with ``@REVISION`` if wanted, or ``local-dir:FOLDER`` with
            ``config.json`` and ``model.safetensors`` as timm writes them.

    Raises:
        ModelError: no such model, not reachable, or one whose last self-attention says something else.
    """
    with explaining(f"timm model {name!r} cannot be used"):
        identifier, revision = (name, None) if name.startswith(LOCAL_PREFIX) else split_revision(name)
        with torch.device("meta"):
            model, folder = build_timm(identifier)
            side_px = square_patch_px(model)
            query, _ = last_queries_and_keys(model.eval(), torch.empty(1, 3, 2 * side_px, 3 * side_px))
        heads = query.shape[1]
        if folder is not None:
            folder = folder.resolve()
            return TimmSpec(name, folder_digest(folder, [CONFIG, TIMM_WEIGHTS]), side_px, heads, str(folder))
        repository = hub_repository(model)
    commit = hub_commit(f"timm model {name!r}", repository, revision)
    return TimmSpec(identifier, commit, side_px, heads, repository=repository)


def load_timm(spec: TimmSpec, device: torch.device, dtype: torch.dtype) -> TimmModel:
    """Load a model that was found.

    Raises:
        ModelError: the weights cannot be had or do not fit.
    """
    with explaining(f"timm model {spec.name!r} cannot be loaded"):
        model, _ = build_timm(spec.name)
        return TimmModel(with_weights(model, spec.weights(), device, dtype), *pixel_statistics(model))


class LastAttention(TorchFunctionMode):
    """Keeps the arguments of the last attention that is computed inside.

    timm's classes differ in what they do to queries and keys before they compare them (norms, rotations). All compare
    them with the same function of torch.
    """

    arguments: tuple[Tensor, Tensor, dict[str, Any]] | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self.arguments = (args[0], args[1], kwargs)
        return function(*args, **kwargs)


def last_queries_and_keys(model: Any, pixels: Float[Tensor, "batch 3 input_h input_w"]) -> LayerQueriesAndKeys:
    """What the last self-attention compares: queries and keys of all patches, without class and register tokens.

    Args:
        model: one of timm's, on the pixels' device and in their format.
        pixels: normalised; their sides are multiples of the patch size.

    Raises:
        ValueError: the model has no self-attention of all patches, or queries and keys do not say all of it.
    """
    side_px = square_patch_px(model)
    grid_hw = (pixels.shape[2] // side_px, pixels.shape[3] // side_px)
    with LastAttention() as seen:
        model.forward_features(pixels)
    if seen.arguments is None:
        raise ValueError("it computes no self-attention in one step (and TIMM_FUSED_ATTN=0 switches that off)")
    query, key, more = seen.arguments
    query, key = (part.unflatten(0, (len(pixels), -1)) if part.ndim == 3 else part for part in (query, key))
    first = getattr(model, "num_prefix_tokens", 0)
    if query.shape != key.shape or len(query) != len(pixels) or query.shape[2] - first != grid_hw[0] * grid_hw[1]:
        raise ValueError("its last self-attention does not compare all patches with each other")
    query, key = query[:, :, first:], key[:, :, first:]
    if isinstance(model, VisionTransformerSAM):
        last: Any = model.blocks[-1].attn
        if last.use_rel_pos:
            return with_relative_positions(last, query, key, grid_hw)
    if more.get("attn_mask") is not None or more.get("is_causal") or more.get("scale") is not None:
        raise ValueError("its last self-attention depends on more than queries and keys")
    return query, key


def with_relative_positions(
    attention: Any,
    query: Float[Tensor, "batch heads positions own_width"],
    key: Float[Tensor, "batch heads positions own_width"],
    grid_hw: tuple[int, int],
) -> LayerQueriesAndKeys:
    """Queries and keys that also hold SAM's relative positions.

    SAM adds to the logit of query q at (y, x) and a key at (v, u) the products of q with a vector for y - v and one for
    x - u. These are as many further columns of the query as there are rows and columns. The key has a 1 in its own.
    """
    rows, columns = grid_hw
    on_grid = query.unflatten(2, grid_hw)
    of_rows = torch.einsum("bnyxc,yvc->bnyxv", on_grid, get_rel_pos(rows, rows, attention.rel_pos_h))
    of_columns = torch.einsum("bnyxc,xuc->bnyxu", on_grid, get_rel_pos(columns, columns, attention.rel_pos_w))
    width = query.shape[3]
    longer = torch.cat([query * width**-0.5, of_rows.flatten(2, 3), of_columns.flatten(2, 3)], dim=3)
    row, column = (torch.eye(side, dtype=key.dtype, device=key.device) for side in grid_hw)
    places = torch.cat([row.repeat_interleave(columns, dim=0), column.repeat(rows, 1)], dim=1)
    # Logits are divided by the root of the width: here of the longer one.
    return longer * longer.shape[3] ** 0.5, torch.cat([key, places.expand(*key.shape[:3], -1)], dim=3)
