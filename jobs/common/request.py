"""The checks of a labelling request before Ray starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from cliper.loading import check_diffusion, embed_empty_prompt
from cliper.models import ClipSpec, DiffusionSpec, ModelError, find_clip, find_diffusion
from cliper.published import Benchmark, profile_settings
from cliper.settings import CLASS_THRESHOLDS, EncoderDefaults, MethodSettings, OpenDefaults
from cluster.actors import CliperSpec
from cluster.storage import STORAGE_ERRORS, open_location, storage_problem
from jobs.common.options import MethodOptions
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import RequestError
from schemas.settings_file import SettingsFile, parse_settings_file

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Models:
    """The models of a request, their settings, and the settings file.

    Attributes:
        diffusion_side_px: side of the diffusion model's input; None without.
        heads: number of the diffusion model's heads that compensation can use; 0 without.
    """

    clip: ClipSpec
    diffusion: DiffusionSpec | None
    settings: MethodSettings
    file: SettingsFile
    diffusion_side_px: int | None = None
    heads: int = 0

    def manifest(self) -> dict[str, object]:
        found = {"clip": self.clip, "diffusion": self.diffusion}
        return {role: {"name": spec.name, "revision": spec.revision} for role, spec in found.items() if spec}

    def spec(self, embeddings: VocabularyEmbeddings, precision: str) -> CliperSpec:
        """The specification for the labelling actors.

        Raises:
            RequestError: the diffusion model's text encoder cannot be loaded.
        """
        try:
            empty_prompt = embed_empty_prompt(self.diffusion).numpy() if self.diffusion else None
        except ModelError as error:
            raise RequestError(f"--diffusion: {error}") from error
        return CliperSpec(
            self.clip, self.diffusion, empty_prompt, embeddings, self.settings, precision, self.diffusion_side_px
        )


def find_models(
    options: MethodOptions,
    class_names: Sequence[str] = (),
    benchmark: Benchmark | None = None,
    file: SettingsFile | None = None,
) -> Models:
    """Find the models and check the settings against them. No weights are loaded.

    Args:
        options: models and settings.
        class_names: the vocabulary. A settings file may have thresholds for its classes.
        benchmark: a data set whose published settings replace the encoder's defaults.
        file: replaces the settings file of the options.

    Raises:
        RequestError: a model cannot be found, or a setting does not fit it.
    """
    file = file or read_settings_file(options.settings, class_names)
    try:
        clip = find_clip(options.clip)
        defaults = clip.defaults
        if benchmark is not None:
            published = benchmark.encoder(clip.patch_size_px)
            defaults = published.with_windows() if options.sliding_crop_px else published
        if options.profile is not None:
            defaults = replace(defaults, **profile_settings(options.profile, clip.patch_size_px))
        settings = options.resolve(defaults, clip.open_defaults, file, class_names)
        settings.check_encoder(clip.blocks, clip.patch_size_px)
        if not settings.needs_diffusion:
            return Models(clip, None, settings, file)
        diffusion = find_diffusion(options.diffusion)
        side_px, heads = check_diffusion(diffusion, settings)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return Models(clip, diffusion, settings, file, side_px, heads)


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


def parse_text(flag: str, address: str, parse: Callable[[str], Parsed]) -> Parsed:
    """Read a text file and parse it. Raises RequestError as `parse_file` does."""
    return parse_file(flag, address, lambda data: parse(decode_text(data)))


def decode_text(data: bytes) -> str:
    """UTF-8 text. Raises ValueError: it is something else."""
    if b"\0" in data:  # which UTF-8 allows, and UTF-16 is full of
        raise ValueError("it is not UTF-8 text (it has null characters, as UTF-16 has)")
    return data.decode("utf-8")


def parse_file(flag: str, address: str, parse: Callable[[bytes], Parsed]) -> Parsed:
    """Read a file and parse it.

    Raises:
        RequestError: it cannot be read, or ``parse`` raised ValueError. The message names the flag and the file.
    """
    location = open_location(address, flag)
    try:
        # fsspec cannot read pipes, because it looks for their end first.
        return parse(Path(location.path).read_bytes() if location.is_local else location.fs.cat_file(location.path))
    except STORAGE_ERRORS as error:
        raise RequestError(f"{flag} {address} cannot be read: {storage_problem(error)}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{flag} {address}: it is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise RequestError(f"{flag} {address}: it is nested too deeply") from error
    except ValueError as error:
        raise RequestError(f"{flag} {address}: {error}") from error
