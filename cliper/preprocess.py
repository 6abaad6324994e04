"""From an image to the pixels that the models read: uint8, so that they are small to move; without torch."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cliper.settings import MethodSettings

PANORAMA = 3.0
"""Attention memory grows with the square of the patches. So an image whose longer side is more than this many times its
shorter one gets a coarser grid, unless its patches are few.
"""
FEW_PATCHES = 4096
"""The published settings stay below 2,500 patches on every data set; they are never affected."""

BAND_PIXELS = 2**24
"""Images with more pixels are read in bands of about as many."""

ImageArray = UInt8[np.ndarray, "_height _width 3"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the models read of an image.

    Attributes:
        clip: RGB pixels on CLIP's patch grid.
        affinity: RGB pixels for the second model, whose attention or features say which pixels belong together; None
            without such a model.
        image_hw: height and width of the image itself, in pixels.
        seed: of the diffusion noise.
    """

    clip: ImageArray
    affinity: ImageArray | None
    image_hw: tuple[int, int]
    seed: int


@dataclass(frozen=True)
class InputSpec:
    """The sizes at which a method's models read images.

    Attributes:
        shorter_side_px, patch_size_px: of CLIP's input, see `patch_grid_hw`.
        diffusion_side_px: side of the diffusion model's square input; None without.
        affinity_patch_size_px: patch size of another second model; None without.
        affinity_side_px: shorter side of that model's input. None for the size nearest to CLIP's.
        longest_side_px: CLIP's input is resized as mmsegmentation does: linearly, its sides not rounded to patches, the
            longer one no longer than this. None for CLIPer's way.
    """

    shorter_side_px: int
    patch_size_px: int
    diffusion_side_px: int | None = None
    affinity_patch_size_px: int | None = None
    affinity_side_px: int | None = None
    longest_side_px: int | None = None

    def clip_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of CLIP's input in pixels."""
        if self.longest_side_px is not None:
            scale = min(self.longest_side_px / max(image_hw), self.shorter_side_px / min(image_hw))
            return max(1, int(image_hw[0] * scale + 0.5)), max(1, int(image_hw[1] * scale + 0.5))
        rows, columns = patch_grid_hw(image_hw, self.shorter_side_px, self.patch_size_px)
        return rows * self.patch_size_px, columns * self.patch_size_px

    def is_coarser(self, image_hw: tuple[int, int]) -> bool:
        """True for a panorama whose grid is coarser than that of other images; see `PANORAMA`."""
        rows, columns = patches_hw(image_hw, self.shorter_side_px, self.patch_size_px)
        patches = int(rows + 0.5) * int(columns + 0.5)
        return self.longest_side_px is None and patches > most_patches(self.shorter_side_px, self.patch_size_px)

    def affinity_hw(self, image_hw: tuple[int, int]) -> tuple[int, int] | None:
        """Height and width of the second model's input in pixels; None without.

        A model that is no diffusion model gets whole patches, and no more of them than `most_patches`.
        """
        if self.diffusion_side_px is not None:
            return self.diffusion_side_px, self.diffusion_side_px
        if self.affinity_patch_size_px is None:
            return None
        if self.affinity_side_px is not None:
            return InputSpec(self.affinity_side_px, self.affinity_patch_size_px).clip_hw(image_hw)
        clip_hw = self.clip_hw(image_hw)
        return InputSpec(min(clip_hw), self.affinity_patch_size_px).clip_hw(clip_hw)

    def prepare(self, image: Image.Image, seed: int) -> Prepared:
        """Resize an RGB image for the models; its own pixels are not needed after that."""
        image_hw = (image.height, image.width)
        affinity = None
        if (affinity_hw := self.affinity_hw(image_hw)) is not None:
            resize = resize_nearest if self.diffusion_side_px is not None else resize_bicubic
            affinity = resize(image, affinity_hw)
        resize = resize_bicubic if self.longest_side_px is None else resize_linear
        return Prepared(resize(image, self.clip_hw(image_hw)), affinity, image_hw, seed)


def clip_inputs(settings: MethodSettings, patch_size_px: int) -> InputSpec:
    """How images are prepared for CLIP alone: at the largest of its scales."""
    return InputSpec(settings.sides_px[0], patch_size_px)


def patch_grid_hw(image_hw: tuple[int, int], shorter_side_px: int, patch_size_px: int) -> tuple[int, int]:
    """Rows and columns of patches: the shorter side is scaled to ``shorter_side_px``, each side rounded to patches.

    Each is at least 1, their product at most `most_patches`. The image's sides must be at least 1.
    """
    most = most_patches(shorter_side_px, patch_size_px)
    rows, columns = patches_hw(image_hw, shorter_side_px, patch_size_px)
    shrink = min(1.0, (most / (rows * columns)) ** 0.5)
    height, width = (max(1, int(side * shrink + 0.5)) for side in (rows, columns))
    return min(height, most // width or 1), min(width, most // height or 1)


def patches_hw(image_hw: tuple[int, int], shorter_side_px: int, patch_size_px: int) -> tuple[float, float]:
    """Rows and columns of patches before they are rounded."""
    scale = shorter_side_px / min(image_hw)
    return image_hw[0] * scale / patch_size_px, image_hw[1] * scale / patch_size_px


def most_patches(shorter_side_px: int, patch_size_px: int) -> int:
    """The most patches that an image gets; see `PANORAMA`."""
    side = int(shorter_side_px / patch_size_px + 0.5)
    return max(FEW_PATCHES, int(PANORAMA * side**2))


def resize_bicubic(image: Image.Image, size_hw: tuple[int, int]) -> ImageArray:
    """Pillow's bicubic filter, antialiased, as the official release uses it."""
    return np.asarray(image.resize(size_hw[::-1], Image.Resampling.BICUBIC))


def resize_linear(image: Image.Image, size_hw: tuple[int, int]) -> ImageArray:
    """Between the four nearest pixels, without antialiasing, as OpenCV and mmsegmentation resize."""
    values = np.asarray(image)
    for axis, (old, new) in enumerate(zip(values.shape, size_hw, strict=False)):
        position = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1).astype(np.float32)
        lower = position.astype(np.int64)
        share = np.expand_dims(position - lower, (1, 2) if axis == 0 else (0, 2))
        before, after = (values.take(index, axis) for index in (lower, np.minimum(lower + 1, old - 1)))
        values = before * (1 - share) + after * share
    return (values + 0.5).astype(np.uint8)


def resize_nearest(image: Image.Image, size_hw: tuple[int, int]) -> ImageArray:
    """Nearest neighbour as torch's ``interpolate(mode="nearest")`` chooses it: pixel floor(i * old / new)."""
    rows, columns = (
        # in float32, as torch computes it
        np.minimum(np.arange(new, dtype=np.float32) * np.float32(old / new), old - 1).astype(np.int64)
        for old, new in zip((image.height, image.width), size_hw, strict=True)
    )
    bands = np.array_split(rows, min(len(rows), -(-image.width * image.height // BAND_PIXELS)))
    if len(bands) == 1:
        return np.asarray(image)[rows[:, None], columns]
    # A copy of all pixels would double the memory that the largest images need.
    crops = ((band, image.crop((0, int(band[0]), image.width, int(band[-1]) + 1))) for band in bands)
    return np.concatenate([np.asarray(crop)[band[:, None] - band[0], columns] for band, crop in crops])
