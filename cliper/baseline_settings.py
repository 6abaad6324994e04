"""What can be set about the baselines, apart from what runs them: ``--help`` must not wait for torch."""

from dataclasses import dataclass, field
from typing import Literal

from cliper.preprocess import InputSpec
from cliper.settings import CheckedSettings, EncoderDefaults

BaselineMethod = Literal["clip", "maskclip", "sclip", "clearclip", "proxyclip"]
OwnAttention = Literal["clip", "maskclip", "sclip", "clearclip"]
"""Methods whose attention comes from CLIP itself."""
Harness = Literal["published", "shared"]
"""``published``: as the methods' authors evaluate them. ``shared``: all on CLIPer's terms."""
LONGEST_SIDE_PX = 2048
DEFAULT_PROXY = "vit_base_patch8_224.dino"
DECLARED = EncoderDefaults.__dataclass_fields__


@dataclass(frozen=True)
class BaselineSettings(CheckedSettings):
    """What can be set about the baselines.

    With harness ``published``, images are resized as mmsegmentation does, their longer side to at most 2,048 px, and
    CLIP's positions bicubically. With ``shared``, both happen as for CLIPer, and there are no windows.

    Attributes:
        crop_px: side of the sliding windows; 0 for none.
        stride_px: distance of neighbouring windows.
        background_threshold: a pixel is background where no class is at least this probable; 0 to 1.
        area_threshold: a class with no more than this share of the pixels that are not background wins none; 0 to 1.
        score_threshold: a class is taken for present where its score is above this; labels do not depend on it.

    Raises:
        ValueError: a value is out of its range.
    """

    harness: Harness = "shared"
    shorter_side_px: int = field(default=336, metadata=DECLARED["shorter_side_px"].metadata)
    crop_px: int = field(default=0, metadata={"range": (0, 8192)})
    stride_px: int = field(default=112, metadata={"range": (1, 8192)})
    logit_scale: float = field(default=40.0, metadata=DECLARED["logit_scale"].metadata)
    background_threshold: float = field(default=0.0, metadata={"range": (0.0, 1.0)})
    area_threshold: float = field(default=0.0, metadata={"range": (0.0, 1.0)})
    score_threshold: float = field(default=0.5, metadata={"range": (0.0, 1.0)})

    def inputs(self, patch_size_px: int, proxy_patch_size_px: int | None) -> InputSpec:
        """How images must be prepared for encoders with such patches."""
        if self.harness == "published":  # a second model sees the same pixels as CLIP
            return InputSpec(self.shorter_side_px, patch_size_px, longest_side_px=LONGEST_SIDE_PX)
        return InputSpec(self.shorter_side_px, patch_size_px, affinity_patch_size_px=proxy_patch_size_px)
