"""From a decoded picture to the two model inputs."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MAX_PATCHES = 4096
"""Attention memory grows with the square of the patches, so a panorama gets a coarser grid instead of more of them.

The published settings stay below 2,500 patches on every data set; they are never affected.
"""


def patch_grid_hw(image_hw: tuple[int, int], shorter_side_px: int, patch_size_px: int) -> tuple[int, int]:
    """Rows and columns of patches: the shorter side is scaled to ``shorter_side_px``, each side rounded to patches.

    Args:
        image_hw: height and width of the picture in pixels, both at least 1.
        shorter_side_px: wanted shorter side in pixels.
        patch_size_px: side of a patch in pixels.

    Returns:
        Rows and columns, each at least 1, their product at most ``MAX_PATCHES``.
    """
    scale = shorter_side_px / min(image_hw)
    rows, columns = (side * scale / patch_size_px for side in image_hw)
    shrink = min(1.0, (MAX_PATCHES / (rows * columns)) ** 0.5)
    height, width = (max(1, int(side * shrink + 0.5)) for side in (rows, columns))
    return min(height, MAX_PATCHES // width or 1), min(width, MAX_PATCHES // height or 1)


def clip_input(
    image_hwc_u8: UInt8[np.ndarray, "height width 3"],
    grid_hw: tuple[int, int],
    patch_size_px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "3 input_height input_width"]:
    """The whole picture, resized bicubically to the patch grid and normalised with the encoder's mean and deviation."""
    height, width = (side * patch_size_px for side in grid_hw)
    resized = Image.fromarray(image_hwc_u8).resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def diffusion_input(
    image_hwc_u8: UInt8[np.ndarray, "height width 3"], side_px: int
) -> Float[Tensor, "3 {side_px} {side_px}"]:
    """The whole picture, squeezed to a square by nearest neighbour, in -1 to 1."""
    pixels = torch.tensor(image_hwc_u8).permute(2, 0, 1)[None]
    return F.interpolate(pixels, (side_px, side_px), mode="nearest")[0].float() / 127.5 - 1
