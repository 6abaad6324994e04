"""Dense features of timm's image towers through the kernels, beside those of plain torch, in Triton's interpreter; the
test runs it in a process of its own, because Triton reads the variable when it is imported."""

from dataclasses import replace

import torch

from cliper.fusion import fuse
from cliper.settings import VIT_B_16, MethodSettings
from cliper.vision import VisionTower
from tests.support.towers import small_tower

HEAD_WIDTHS = {"SigLIP": 72, "SigLIP with registers": 16, "EVA02": 16, "PE": 16}
"""72 is that of SO400M."""
TOLERANCE = 1e-4


@torch.inference_mode()
def main() -> None:
    """Print what differs; nothing if all is equal."""
    settings = MethodSettings(**vars(VIT_B_16))
    for family, width in HEAD_WIDTHS.items():
        tower = VisionTower(small_tower(family, embed_dim=2 * width), (0.5,) * 3, (0.5,) * 3)
        pixels = torch.randn(1, 3, 2 * tower.patch_size_px, 5 * tower.patch_size_px)
        plain, after = fuse(tower, pixels, settings), fuse(replace(tower, kernels=True), pixels, settings)
        for name in ("dense", "attention"):
            one, other = getattr(plain, name), getattr(after, name)
            error = (one - other).abs().max() / one.abs().max()
            if one.shape != other.shape or not error < TOLERANCE:
                print(f"{family}, heads of {width}: {name} differs by {error:.1e}")


if __name__ == "__main__":
    main()
