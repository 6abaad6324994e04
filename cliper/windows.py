"""Windows over CLIP's input: where they are, and what they show put together again."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def window_corners(size_hw: tuple[int, int], crop_hw: tuple[int, int], stride_px: int) -> list[tuple[int, int]]:
    """Top and left pixel of every window, row by row. The last windows are shifted inwards to end with the image."""
    tops, lefts = (
        [min(start, length - crop) for start in range(0, length - crop + stride_px, stride_px)]
        for length, crop in zip(size_hw, crop_hw, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


@dataclass(frozen=True)
class Windows:
    """Windows of one size that cover images of one size.

    Attributes:
        corners: top and left pixel of each, multiples of the patch size.
        crop_hw: height and width of each in pixels, whole patches.
        size_hw: height and width of the images in pixels, whole patches.
        patch_size_px: side of a patch.
    """

    corners: list[tuple[int, int]]
    crop_hw: tuple[int, int]
    size_hw: tuple[int, int]
    patch_size_px: int

    @classmethod
    def over(cls, size_hw: tuple[int, int], crop_px: int, stride_px: int, patch_size_px: int) -> "Windows":
        """Square windows, or smaller ones where the image is smaller."""
        crop_hw = min(crop_px, size_hw[0]), min(crop_px, size_hw[1])
        return cls(window_corners(size_hw, crop_hw, stride_px), crop_hw, size_hw, patch_size_px)

    def crops(
        self, pixels: Float[Tensor, "batch 3 input_height input_width"]
    ) -> Float[Tensor, "batch_times_windows 3 crop_height crop_width"]:
        """The windows of each image, image after image."""
        height, width = self.crop_hw
        cut = [pixels[:, :, top : top + height, left : left + width] for top, left in self.corners]
        return torch.stack(cut, dim=1).flatten(0, 1)

    def stitch(
        self, tokens: Float[Tensor, "batch_times_windows window_tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """The tokens of whole images: at each patch the mean of the windows that hold it.

        Tokens in front of the patches, such as the class token, become the mean over the windows.
        """
        (crop_h, crop_w), (height, width) = (
            (high // self.patch_size_px, wide // self.patch_size_px) for high, wide in (self.crop_hw, self.size_hw)
        )
        per_image = tokens.unflatten(0, (-1, len(self.corners)))
        prefix = per_image[:, :, : -crop_h * crop_w].mean(dim=1)
        patches = per_image[:, :, -crop_h * crop_w :].unflatten(2, (crop_h, crop_w))
        total = patches.new_zeros(len(patches), height, width, patches.shape[-1])
        count = patches.new_zeros(height, width, 1)
        for index, (top, left) in enumerate(self.corners):
            row, column = top // self.patch_size_px, left // self.patch_size_px
            there = (slice(row, row + crop_h), slice(column, column + crop_w))
            total[:, *there] += patches[:, index]
            count[there] += 1
        return torch.cat([prefix, (total / count).flatten(1, 2)], dim=1)
