"""Command-line options that jobs share: the models and the method's settings."""

from dataclasses import Field, dataclass, make_dataclass
from typing import Annotated, Any, Literal

import tyro

from cliper.asked import DECLARED, DEFAULT_CLIP, DEFAULT_DIFFUSION, Asked, Precision, given_default
from cliper.baseline_settings import DEFAULT_PROXY, BaselineMethod, Harness
from cliper.published import Profile
from cliper.settings import OPEN_SETTINGS, VIT_B_16, VIT_L_14
from schemas.errors import RequestError

MethodName = Literal["cliper"] | BaselineMethod


@dataclass(frozen=True)
class ModelOptions:
    """The models."""

    clip: str = DEFAULT_CLIP
    """CLIP model: an open_clip name such as ViT-B-16, ViT-L-14, ViT-H-14:laion2b_s32b_b79k, ViT-B-16-SigLIP2:webli,
    EVA02-B-16:merged2b_s8b_b131k or PE-Core-B-16:meta (with @REVISION if wanted), local-dir:FOLDER, or demo (a small
    one that comes with the package and knows a drawn world). Defaults of other settings, such as --logit-scale, are
    published for ViT-B-16 and ViT-L-14. Others get those of the nearer one, which are not measured for them."""
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
    """Name, type and default of a setting on the command line, see `cliper.resolve.given_default`."""
    kind: Any = setting.type
    about, default = setting.metadata["help"], given_default(setting)
    if default is not None:
        return setting.name, Annotated[kind, tyro.conf.arg(help=f"{about}.")], default
    if setting.name in OPEN_SETTINGS:
        explained = f"default: {setting.default:g}"
    elif setting.name == "compensation":
        explained = (
            "default: product, with affinity clip and timm mean, without a model for it guided with preset open, else "
            "none"
        )
    else:
        small, large = (getattr(defaults, setting.name) for defaults in (VIT_B_16, VIT_L_14))
        explained = f"published: {small}" if small == large else f"ViT-B/16: {small:g}, ViT-L/14: {large:g}"
    return setting.name, Annotated[kind | None, tyro.conf.arg(help=f"{about} ({explained}).")], None


GivenSettings: Any = make_dataclass("GivenSettings", map(option, DECLARED), bases=(ModelOptions,), frozen=True)
"""The models, and every setting of the method as an option."""


@dataclass(frozen=True)
class MethodOptions(GivenSettings):
    """Models and settings of CLIPer. Settings left out take the encoder's values for the preset: with release and paper
    those published for PASCAL VOC."""

    precision: Precision = "auto"
    """Number format of the models; auto is fp16 on GPUs, as in the official release, and fp32 on CPUs. On 50
    photographs 99.8 % of the pixels agreed (docs/performance.md)."""
    settings: str | None = None
    """Settings file, as jobs/evaluate.py --calibrate writes it; other options come before what it says."""
    profile: Profile | None = None
    """Preset release: the settings that the published benchmarks of a kind share. objects: PASCAL VOC and COCO-Object;
    scene: COCO-Stuff and ADE20K; street: Cityscapes."""

    def asked(self) -> Asked:
        """The models and settings that were asked for."""
        settings = {setting.name: getattr(self, setting.name) for setting in DECLARED}
        return Asked(self.clip, self.diffusion, settings, self.profile)


@dataclass(frozen=True)
class PlanOptions:
    """Options of --plan."""

    plan: bool = False
    """Print how the job would use the cluster, how long it may take and what it may cost, and stop."""
    actor_images_per_second: float | None = None
    """For --plan: images that one actor labels per second (default: the newest measurement, if there is one)."""
    actor_price_per_hour: float | None = None
    """For --plan: price per hour of the machine that one actor uses, in any currency."""

    def check(self) -> None:
        """Raises RequestError: a number is not positive, or is given without --plan."""
        for name in ("actor_images_per_second", "actor_price_per_hour"):
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and not value > 0:
                raise RequestError(f"{flag} must be above 0, not {value}")
            if value is not None and not self.plan:
                raise RequestError(f"{flag} belongs to --plan")
