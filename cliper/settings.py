"""The settings of the method. Each field declares a setting once: name, type, default, range and help text.

The command line (`jobs.common.options`), settings files (`schemas.settings_file`) and published values
(`cliper.published`) follow from these fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

import numpy as np

Preset = Literal["open", "release", "paper"]
Attention = Literal["query-key", "query-query", "key-key", "value-value", "identity", "early-layer"]
Compensation = Literal["product", "mean", "head", "guided", "none"]
Windows = Literal["none", "average", "stitched"]
Threshold = TypeVar("Threshold")

DIFFUSION_TIMESTEP = 101
"""Entry 45 of the 50-step PNDM schedule, at which the official release adds noise."""
DIFFUSION_LAYERS = (1, 0)
"""The official release's self-attentions of the last up block."""
TIMM_SIDE_PX = 512
CLIP_SIDE = 4 / 3
"""Shorter side of what affinity ``clip`` reads, as a multiple of CLIP's own (docs/beyond.md)."""
CLIP_AFFINITY, DIFFUSION_AFFINITY, TIMM_PREFIX = "clip", "diffusion", "timm:"

SLIDING_STRIDE_PX = 112
"""Distance between neighbouring sliding windows, in pixels of the CLIP input (fixed in the official release)."""
WINDOW_PX = 336
"""Side of windows of which only the use was given."""
SCALES = (0.25, 4.0)
"""Range of ``scales``."""
CLASS_THRESHOLDS = ("score_threshold", "background_threshold")
"""Settings for which every class can have a value of its own. Preset ``open`` does not use them."""
OPEN_SETTINGS = ("presence_threshold", "outline_threshold", "presence_midpoint", "presence_slope")
"""Settings that only preset ``open`` uses, in place of `CLASS_THRESHOLDS`."""
DIFFUSION_SETTINGS = ("diffusion_timestep", "diffusion_layers")
"""Settings that only affinity ``diffusion`` uses."""


def declare(about: str, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """Metadata of a setting's field.

    Args:
        about: help text.
        low, high: range of the values, both included; None leaves the range open.
    """
    return {"help": about, "range": None if low is None else (low, high)}


@dataclass(frozen=True)
class CheckedSettings:
    """A group of settings that checks its values.

    Raises:
        ValueError: a value is out of its range.
    """

    def __post_init__(self) -> None:
        for setting in fields(self):
            check_range(setting.name, getattr(self, setting.name), setting.metadata.get("range"))


def check_range(name: str, value: Any, allowed: tuple[float, float] | None) -> None:
    if allowed is not None and not allowed[0] <= value <= allowed[1]:
        raise ValueError(f"{name} must be between {allowed[0]} and {allowed[1]}, not {value}")


@dataclass(frozen=True)
class EncoderDefaults(CheckedSettings):
    """The settings whose defaults depend on the encoder.

    ``score_threshold`` is on the scale of ``scores``, whose values can exceed 1.
    """

    shorter_side_px: int = field(metadata=declare("Shorter side of CLIP's input in pixels", 1, 8192))
    select_layer: int = field(
        metadata=declare("Feature whose map is spread over similar patches. Negative numbers count from the last")
    )
    logit_scale: float = field(
        metadata=declare(
            "Factor on the cosine similarities before the softmax over queries, also for models that were trained with "
            "a sigmoid. Preset open: 80 for ViT-B/16, 40 for ViT-L/14. Others have one of these, which is not measured "
            "for them", 0.0, 1e4,
        )
    )  # fmt: skip
    attention_threshold: float = field(
        metadata=declare(
            "Entries below this share of their maximum become zero, in the selected class map and in the attention "
            "that sharpens maps", 0.0, 1.0,
        )
    )  # fmt: skip
    score_threshold: float = field(metadata=declare("Classes whose score is not above it are absent", 0.0, 10.0))
    background_threshold: float = field(
        metadata=declare(
            "A pixel is background where no class reaches this value. 0 uses a background map instead", 0.0, 10.0
        )
    )
    normalize_maps: bool = field(
        default=True,
        metadata=declare(
            "Stretch every class map from 0 to 1 before the classes compete. Settings files and published settings of "
            "benchmarks can switch this off, whatever is given here"
        ),
    )


VIT_B_16 = EncoderDefaults(336, -1, 100.0, 0.1, 0.7, 0.6)
"""Published for PASCAL VOC with background."""
VIT_L_14 = EncoderDefaults(336, -2, 50.0, 0.1, 0.5, 0.4)


VIT_H_14_BLOCKS = 32


def encoder_defaults(patch_size_px: int, blocks: int) -> EncoderDefaults:
    """Defaults for an encoder: those of ViT-L/14 for patches of 14 pixels, else those of ViT-B/16.

    They are not measured for others than these two. The official release's file for ViT-H/14 has ViT-B/16's logit scale
    and thresholds. No figures are published for it.
    """
    return VIT_L_14 if patch_size_px == 14 and blocks != VIT_H_14_BLOCKS else VIT_B_16


@dataclass(frozen=True)
class OpenDefaults(CheckedSettings):
    """The settings of preset ``open`` that depend on the encoder, with the map from scores to probabilities.

    A class with score s is in the image with probability ``1 / (1 + (presence_midpoint / s) ** presence_slope)``, a
    logistic curve over log s.

    Attributes:
        measured: the photographs and figures that the curve was fitted with; empty if it was derived from the published
            thresholds and not measured.
    """

    logit_scale: float
    presence_midpoint: float = field(metadata={"range": (1e-6, 10.0)})
    presence_slope: float = field(metadata={"range": (1e-3, 100.0)})
    outline_threshold: float = field(default=0.4, metadata={"range": (0.0, 1.0)})
    measured: str = ""


OPEN_VIT_B_16 = OpenDefaults(80.0, 0.316, 1.4)
OPEN_MEASURED = "OpenAI's weights, 50 COCO photographs, 133 classes, without a diffusion model (docs/words.md)"
"""Where `OPEN_VIT_B_16` was fitted. Other weights of the same shape share the values, which are not measured then."""
OPEN_VIT_L_14 = OpenDefaults(40.0, 0.226, 1.4)
"""Derived: published for PASCAL VOC are half of ViT-B/16's logit scale and 5/7 of its score threshold."""


def open_defaults(patch_size_px: int) -> OpenDefaults:
    """Defaults of preset ``open`` for an encoder: those of ViT-L/14 for patches of 14 pixels, else ViT-B/16's."""
    return OPEN_VIT_L_14 if patch_size_px == 14 else OPEN_VIT_B_16


@dataclass(frozen=True)
class MethodSettings(EncoderDefaults):
    """All settings of CLIPer that change its numbers.

    ``preset="open"`` is for any vocabulary: a class competes once, with its best query, against a broad background, and
    calibrated probabilities decide what is present. Its features are those of ``release``.

    ``preset="release"`` follows the official release, which gives the better published numbers: attention is
    renormalised once more for every feature, made symmetric, centred and clamped, and diffusion attention is
    thresholded. ``preset="paper"`` follows the plain equations: the mean of the early attention maps (equation 8),
    block outputs as features, and diffusion attention as it is (equations 9 and 10).

    Attributes:
        class_score_thresholds, class_background_thresholds: a threshold for every class, in vocabulary order, in place
            of the common one; empty without.
        presence_midpoint, presence_slope: see `OpenDefaults`.

    Raises:
        ValueError: a value is out of its range.
    """

    preset: Preset = field(
        default="release",
        metadata=declare(
            "open: for any words; release: the official release's arithmetic and thresholds; paper: the paper's plain "
            "equations"
        ),
    )
    attention: Attention = field(
        default="early-layer", metadata=declare("What replaces the attention of CLIP's last block (paper table 6)")
    )
    early_embeddings: bool = field(
        default=True, metadata=declare("Use the features of every CLIP block, or only the one at --select-layer")
    )
    compensation: Compensation = field(
        default="product",
        metadata=declare(
            "How maps are sharpened: the heads of --affinity multiplied, averaged or one of them (paper table 7); "
            "guided: an image filter in place of attention; none"
        ),
    )
    affinity: str = field(
        default=DIFFUSION_AFFINITY,
        metadata=declare(
            "Whose self-attention sharpens maps. diffusion: that of --diffusion. clip: CLIP's own, at a higher "
            "resolution. timm:NAME: that of a vision transformer of timm, such as timm:vit_base_patch8_224.dino or "
            "timm:local-dir:FOLDER. The last two need no diffusion model (docs/beyond.md)"
        ),
    )
    affinity_side_px: int = field(
        default=0,
        metadata=declare(
            f"Shorter side of what affinity clip and timm read, in pixels. 0: for clip a third more than "
            f"--shorter-side-px, for timm {TIMM_SIDE_PX}", 0, 8192,
        ),
    )  # fmt: skip
    diffusion_timestep: int = field(
        default=DIFFUSION_TIMESTEP,
        metadata=declare("How much noise the diffusion model's input gets, as a step of its training", 0, 999),
    )
    diffusion_layers: tuple[int, ...] = field(
        default=DIFFUSION_LAYERS,
        metadata=declare(
            "Self-attentions of the last up block with attention whose heads are used, from 0, in the order of the "
            "product"
        ),
    )
    head: int = field(
        default=1, metadata=declare("The head that --compensation head uses, counted over all heads from 0", 0, 1023)
    )
    windows: Windows = field(
        default="none",
        metadata=declare(
            "Windows over CLIP's input. average: class maps of windows and of the whole image are averaged, as in the "
            "official release; stitched: patches of the windows are put together before CLIP's last block"
        ),
    )
    sliding_crop_px: int = field(
        default=0, metadata=declare("Side of the windows in pixels of CLIP's input. 0 is 336", 0, 8192)
    )
    scales: tuple[float, ...] = field(
        default=(1.0,),
        metadata=declare("Sizes at which CLIP sees an image, as factors on --shorter-side-px. Class maps are averaged"),
    )
    flip: bool = field(default=False, metadata=declare("Average class maps with those of the mirrored image"))
    skip_absent: bool = field(
        default=False,
        metadata=declare(
            "Run what --affinity needs only for images in which a class can be present, and only for those classes. "
            "Label maps stay the same. Scores of the other classes are the maxima of their coarse maps"
        ),
    )
    presence_threshold: float = field(
        default=0.5,
        metadata=declare(
            "Preset open: classes are present from this probability on. Probabilities are fitted for OpenAI's ViT-B/16 "
            "and the demo's model. For other encoders they follow from published thresholds and are not measured",
            0.0, 1.0,
        ),
    )  # fmt: skip
    outline_threshold: float = field(
        default=0.4,
        metadata=declare(
            "Preset open: the outline of a class holds the pixels where its map reaches this share of its maximum",
            0.0, 1.0,
        ),
    )  # fmt: skip
    presence_midpoint: float = OPEN_VIT_B_16.presence_midpoint
    presence_slope: float = OPEN_VIT_B_16.presence_slope
    class_score_thresholds: Sequence[float] = ()
    class_background_thresholds: Sequence[float] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip_absent and not self.needs_affinity:
            raise ValueError(
                f"skip_absent saves work of affinity {self.affinity}: compensation {self.compensation} has none"
            )
        self.check_affinity()
        if self.sliding_crop_px and self.windows == "none":
            raise ValueError("sliding_crop_px has no effect without windows: choose average or stitched")
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError("scales must be one factor or several different ones")
        for scale in self.scales:
            check_range("each of scales", scale, SCALES)
        for name in CLASS_THRESHOLDS:
            for value in getattr(self, f"class_{name}s"):
                check_range(f"{name} of a class", value, self.__dataclass_fields__[name].metadata["range"])

    def check_affinity(self) -> None:
        """Raises ValueError: there is no such affinity, or a setting is one of another affinity."""
        if self.affinity not in {DIFFUSION_AFFINITY, CLIP_AFFINITY} and not self.timm_name:
            raise ValueError(f"affinity must be diffusion, clip or timm:NAME, not {self.affinity!r}")
        layers = self.diffusion_layers
        if not layers or min(layers) < 0 or len(set(layers)) < len(layers):
            raise ValueError(f"diffusion_layers must be different numbers from 0 on, at least one, not {layers}")
        of_others = ("affinity_side_px",) if self.affinity == DIFFUSION_AFFINITY else DIFFUSION_SETTINGS
        for name in of_others:
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise ValueError(f"{name} has no effect with affinity {self.affinity}")

    @property
    def needs_affinity(self) -> bool:
        """True if maps are sharpened by the attention of ``affinity``."""
        return self.compensation not in {"guided", "none"}

    @property
    def needs_diffusion(self) -> bool:
        """True if that is a diffusion model's."""
        return self.needs_affinity and self.affinity == DIFFUSION_AFFINITY

    @property
    def second_side_px(self) -> int:
        """Shorter side of what affinity ``clip`` and ``timm`` read."""
        chosen = TIMM_SIDE_PX if self.timm_name else round(CLIP_SIDE * self.shorter_side_px)
        return self.affinity_side_px or chosen

    @property
    def timm_name(self) -> str:
        """timm's name of the model of ``affinity``; empty without."""
        return self.affinity.removeprefix(TIMM_PREFIX) if self.affinity.startswith(TIMM_PREFIX) else ""

    @property
    def window_px(self) -> int:
        """Side of the windows in pixels of CLIP's input; 0 without."""
        return 0 if self.windows == "none" else self.sliding_crop_px or WINDOW_PX

    @property
    def sides_px(self) -> list[int]:
        """Shorter sides of CLIP's input in pixels, the largest first."""
        return sorted((max(1, round(self.shorter_side_px * scale)) for scale in self.scales), reverse=True)

    def features(self, blocks: int) -> int:
        """How many features of an encoder with so many blocks are kept."""
        return blocks - (self.preset == "paper") if self.early_embeddings else 1

    def document(self) -> dict[str, Any]:
        """The settings that the preset uses, for the manifest."""
        unused = CLASS_THRESHOLDS if self.preset == "open" else OPEN_SETTINGS
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "MethodSettings":
        """The settings that `document` gave; what it lacks is ViT-B/16's. Other entries are passed over."""
        known = {setting.name: document[setting.name] for setting in fields(cls) if setting.name in document}
        # JSON has lists.
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        return cls(**(vars(VIT_B_16) | known))

    def probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        """The probability that an image shows a class, for every score; see `OpenDefaults`. None for other presets.

        Args:
            scores: at least 0, of any shape.
        """
        if self.preset != "open":
            return None
        return presence_probability(scores, self.presence_midpoint, self.presence_slope)

    def score_thresholds(self, classes: int) -> tuple[float, ...]:
        """For every class the score above which it is present."""
        if self.preset != "open":
            return class_thresholds(self.class_score_thresholds, self.score_threshold, classes)
        odds = self.presence_threshold / max(1 - self.presence_threshold, 1e-9)
        return (self.presence_midpoint * odds ** (1 / self.presence_slope),) * classes

    def value_thresholds(self, classes: int) -> tuple[float, ...]:
        """For every class the value of its map below which a pixel is not the class's."""
        if self.preset != "open":
            return class_thresholds(self.class_background_thresholds, self.background_threshold, classes)
        return (self.outline_threshold,) * classes

    def check_head(self, heads: int) -> None:
        """Raises ValueError: ``head`` names a head that the affinity's layers do not have."""
        if self.compensation == "head" and self.head >= heads:
            raise ValueError(f"head must be below {heads} for this affinity, not {self.head}")

    def check_encoder(self, blocks: int, patch_size_px: int) -> None:
        """Check the settings that depend on the encoder.

        Raises:
            ValueError: ``select_layer`` names no feature, or the windows do not fall on the patch grid.
        """
        features = blocks - 1 if self.preset == "paper" else blocks
        if not -features <= self.select_layer < features:
            raise ValueError(
                f"select_layer must be between {-features} and {features - 1} for this encoder, not {self.select_layer}"
            )
        if self.window_px % patch_size_px or (self.windows == "average" and SLIDING_STRIDE_PX % patch_size_px):
            raise ValueError(
                f"sliding windows of {self.window_px} px, {SLIDING_STRIDE_PX} px apart, do not fall on the "
                f"encoder's grid of {patch_size_px} px patches; choose a multiple"
            )


def presence_probability(scores: np.ndarray, midpoint: float, slope: float) -> np.ndarray:
    """``1 / (1 + (midpoint / score) ** slope)`` in float32; 0 for a score of 0. See `OpenDefaults`."""
    with np.errstate(divide="ignore"):
        return (1 / (1 + (midpoint / np.asarray(scores, np.float64)) ** slope)).astype(np.float32)


def class_thresholds(own: Sequence[Threshold | None], common: Threshold, classes: int) -> tuple[Threshold, ...]:
    """The threshold of every class: its own where it has one, else the common one.

    Args:
        own: in vocabulary order, None for a class without one; empty if no class has one.
        common: for the others.
        classes: number of classes.
    """
    return tuple(common if value is None else value for value in own or [None] * classes)
