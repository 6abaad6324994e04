"""What can be set about the method, and the published defaults for each encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Preset = Literal["release", "paper"]
Attention = Literal["early-layer", "query-query", "key-key", "value-value", "query-key", "identity"]
Compensation = Literal["product", "mean", "head", "none"]

SLIDING_STRIDE_PX = 112
"""Distance between neighbouring sliding windows, in pixels of the CLIP input (fixed in the official release)."""


@dataclass(frozen=True)
class EncoderDefaults:
    """Settings that suit one encoder; for the paper's encoders those published for PASCAL VOC with background."""

    shorter_side_px: int
    select_layer: int
    logit_scale: float
    attention_threshold: float
    score_threshold: float
    background_threshold: float
    normalize_maps: bool = True


VIT_B_16 = EncoderDefaults(336, -1, 100.0, 0.1, 0.7, 0.6)
VIT_L_14 = EncoderDefaults(336, -2, 50.0, 0.1, 0.5, 0.4)


def encoder_defaults(patch_size_px: int) -> EncoderDefaults:
    """Published defaults for an encoder: those of ViT-L/14 for patches of 14 pixels (ViT-H/14 too), else ViT-B/16's."""
    return VIT_L_14 if patch_size_px == 14 else VIT_B_16


@dataclass(frozen=True)
class MethodSettings:
    """All settings of CLIPer that change its numbers.

    Attributes:
        preset: ``release`` follows the official release, which gives the better published numbers: attention is
            renormalised once more for every feature, made symmetric, centred and clamped, and diffusion attention is
            thresholded. ``paper`` follows the plain equations: the mean of the early attention maps (equation 8), block
            outputs as features, and diffusion attention as it is (equations 9 and 10).
        attention: what replaces the last block's attention (paper table 6).
        early_embeddings: use the features of every block; off keeps only the one at ``select_layer``.
        compensation: how the heads of the diffusion attention are combined (paper table 7).
        head: which head ``compensation="head"`` uses, counted over all heads from 0.
        shorter_side_px: shorter side of the CLIP input.
        select_layer: the feature whose map is spread over similar patches; negative counts from the last.
        logit_scale: factor on the cosine similarities before the softmax over queries.
        attention_threshold: entries below this share of their maximum become zero, in the selected class map and in
            the diffusion attention; 0 to 1.
        score_threshold: classes whose score is not above it are absent from the picture; on the scale of ``scores``,
            whose values can exceed 1.
        background_threshold: a pixel is background where no class reaches this value; 0 uses a background map instead.
        normalize_maps: stretch every class map to start at 0 and end at 1 before the classes compete.
        sliding_crop_px: side of the sliding windows in pixels of the CLIP input; 0 switches them off.
        class_score_thresholds, class_background_thresholds: thresholds of every class, in vocabulary order, in place of
            the common ones; empty where there are none.

    Raises:
        ValueError: a value is out of its range.
    """

    shorter_side_px: int
    select_layer: int
    logit_scale: float
    attention_threshold: float
    score_threshold: float
    background_threshold: float
    preset: Preset = "release"
    attention: Attention = "early-layer"
    early_embeddings: bool = True
    compensation: Compensation = "product"
    head: int = 1
    normalize_maps: bool = True
    sliding_crop_px: int = 0
    class_score_thresholds: Sequence[float] = ()
    class_background_thresholds: Sequence[float] = ()

    def __post_init__(self) -> None:
        for name in ("score_threshold", "background_threshold"):
            for value in getattr(self, f"class_{name}s"):
                if not 0 <= value <= 10:
                    raise ValueError(f"{name} of a class must be between 0 and 10, not {value}")
        ranges = {
            "shorter_side_px": (self.shorter_side_px, 1, 8192),
            "logit_scale": (self.logit_scale, 0.0, 1e4),
            "attention_threshold": (self.attention_threshold, 0.0, 1.0),
            "score_threshold": (self.score_threshold, 0.0, 10.0),
            "background_threshold": (self.background_threshold, 0.0, 10.0),
            "head": (self.head, 0, 1023),
            "sliding_crop_px": (self.sliding_crop_px, 0, 8192),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, not {value}")

    def check_encoder(self, blocks: int, patch_size_px: int) -> None:
        """Check the settings that depend on the encoder.

        Raises:
            ValueError: ``select_layer`` names no feature, or the windows do not fall on the patch grid.
        """
        features = blocks if self.preset == "release" else blocks - 1
        if not -features <= self.select_layer < features:
            raise ValueError(
                f"select_layer must be between {-features} and {features - 1} for this encoder, not {self.select_layer}"
            )
        if self.sliding_crop_px and (self.sliding_crop_px % patch_size_px or SLIDING_STRIDE_PX % patch_size_px):
            raise ValueError(
                f"sliding windows of {self.sliding_crop_px} px, {SLIDING_STRIDE_PX} px apart, do not fall on the "
                f"encoder's grid of {patch_size_px} px patches; choose a multiple, or 0 to switch them off"
            )
