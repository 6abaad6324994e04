"""From what was asked for to models that were found and settings that fit them. No weights are loaded."""

from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin

from cliper.affinity import clip_blocks, whole_image
from cliper.asked import Asked
from cliper.files import parse_text
from cliper.loading import check_diffusion, embed_empty_prompt
from cliper.models import ClipSpec, DiffusionSpec, ModelError, find_clip, find_diffusion
from cliper.preprocess import InputSpec, clip_inputs
from cliper.published import Benchmark, profile_settings
from cliper.settings import (
    CLASS_THRESHOLDS,
    EncoderDefaults,
    MethodSettings,
    OpenDefaults,
)
from cliper.specs import CliperSpec
from cliper.timm_models import TimmSpec, find_timm
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import RequestError
from schemas.settings_file import SettingsFile, has_type, parse_settings_file


@dataclass(frozen=True)
class Models:
    """The models of a request, their settings, and the settings file.

    Attributes:
        all_inputs: how images are prepared for all models.
        timm: the model of affinity ``timm``; None without.
        heads: number of heads that compensation can use; 0 without.
    """

    clip: ClipSpec
    diffusion: DiffusionSpec | None
    settings: MethodSettings
    file: SettingsFile
    all_inputs: InputSpec
    timm: TimmSpec | None = None
    heads: int = 0

    @property
    def inputs(self) -> InputSpec:
        """How images are prepared for CLIP alone."""
        return clip_inputs(self.settings, self.clip.patch_size_px)

    def manifest(self) -> dict[str, object]:
        found = {"clip": self.clip, "diffusion": self.diffusion, "affinity": self.timm}
        return {role: {"name": spec.name, "revision": spec.revision} for role, spec in found.items() if spec}

    def spec(self, embeddings: VocabularyEmbeddings, precision: str) -> CliperSpec:
        """The specification for the processes that label.

        Raises:
            RequestError: the diffusion model's text encoder cannot be loaded, or the settings keep fewer features than
                examples were seen in.
        """
        features = self.settings.features(self.clip.blocks)
        if embeddings.visual is not None and len(embeddings.visual.rows) > features:
            raise RequestError(
                f"--text-embeddings has what examples show in {len(embeddings.visual.rows)} features, and the settings "
                f"keep {features}: give --examples and words instead"
            )
        try:
            empty_prompt = embed_empty_prompt(self.diffusion).numpy() if self.diffusion else None
        except ModelError as error:
            raise RequestError(f"--diffusion: {error}") from error
        return CliperSpec(
            self.clip, self.diffusion, empty_prompt, embeddings, self.settings, precision, self.all_inputs, self.timm
        )


def find_models(
    asked: Asked, file: SettingsFile, class_names: Sequence[str] = (), benchmark: Benchmark | None = None
) -> Models:
    """Find the models and check the settings against them.

    Args:
        asked: models and settings.
        file: the settings file, see `read_settings_file`.
        class_names: the vocabulary. A settings file may have thresholds for its classes.
        benchmark: a data set whose published settings replace the encoder's defaults.

    Raises:
        RequestError: a model cannot be found, or a setting does not fit it.
    """
    try:
        clip = find_clip(asked.clip)
        defaults = clip.defaults
        if benchmark is not None:
            published = benchmark.encoder(clip.patch_size_px)
            defaults = published
            if asked.settings["windows"] == "average":
                defaults = published.with_windows()
                sliding_px = asked.settings["sliding_crop_px"] or published.sliding_crop_px
                asked = replace(asked, settings={**asked.settings, "sliding_crop_px": sliding_px})
        if asked.profile is not None:
            defaults = replace(defaults, **profile_settings(asked.profile, clip.patch_size_px))
        settings = asked.resolve(defaults, clip.open_defaults, file, class_names)
        settings.check_encoder(clip.blocks, clip.patch_size_px)
        return find_affinity(asked, Models(clip, None, settings, file, clip_inputs(settings, clip.patch_size_px)))
    except ValueError as error:
        raise RequestError(str(error)) from error


def find_affinity(asked: Asked, models: Models) -> Models:
    """The models with the one whose attention sharpens maps.

    Raises:
        ValueError: it cannot be found, or a setting does not fit it.
    """
    clip, settings, inputs = models.clip, models.settings, models.all_inputs
    if not settings.needs_affinity:
        return models
    if settings.needs_diffusion:
        diffusion = find_diffusion(asked.diffusion)
        side_px, heads = check_diffusion(diffusion, settings)
        return replace(models, diffusion=diffusion, all_inputs=replace(inputs, diffusion_side_px=side_px), heads=heads)
    timm = find_timm(settings.timm_name) if settings.timm_name else None
    heads = timm.heads if timm else len(clip_blocks(clip.blocks)) * clip.heads
    settings.check_head(heads)
    patch_size_px = timm.patch_size_px if timm else clip.patch_size_px
    return replace(models, all_inputs=whole_image(inputs, settings, patch_size_px), timm=timm, heads=heads)


def read_settings_file(address: str | None, class_names: Sequence[str]) -> SettingsFile:
    """Read the settings file, if there is one.

    Raises:
        RequestError: it cannot be read, or none of its classes is in the vocabulary.
    """
    if address is None:
        return SettingsFile()
    types = {setting.name: setting.type for setting in (*fields(EncoderDefaults), *fields(OpenDefaults))}
    file = parse_text("--settings", address, lambda text: parse_settings_file(text, types, CLASS_THRESHOLDS))
    if file.classes and class_names and file.classes.keys().isdisjoint(class_names):
        raise RequestError(f"--settings {address} has thresholds for classes, and none of them is in the vocabulary")
    return file


def check_given(setting: Field, value: Any) -> None:
    """What the command line checks by itself.

    Raises:
        ValueError: the value is of another type than the setting, or is not one of its choices.
    """
    if get_origin(setting.type) is Literal:
        check_choice(setting.name, value, get_args(setting.type))
    elif get_origin(setting.type) is tuple:
        wanted = get_args(setting.type)[0]
        if not isinstance(value, tuple | list) or not all(has_type(entry, wanted) for entry in value):
            whole = "whole " * (wanted is int)
            raise ValueError(f"{setting.name} must be {whole}numbers, not {value!r}")
    elif isinstance(setting.type, type) and not has_type(value, setting.type):
        raise ValueError(f"{setting.name} must be of type {setting.type.__name__}, not {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Raises ValueError: the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(filter(None, choices))}, not {value!r}")
