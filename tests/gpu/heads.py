"""All ways of using the heads of an attention, through the kernels and beside `cliper.compensation.refine`, in Triton's
interpreter; the test runs it in a process of its own."""

from typing import get_args

import torch

from cliper.compensation import refine, refine_together
from cliper.groups import Groups
from cliper.settings import VIT_B_16, Compensation, MethodSettings

GRID_HW = (7, 9)
TOLERANCE = 1e-4
SEED = 1
"""No entry of the attention lies so close to the threshold that rounding moves it to the other side."""


@torch.inference_mode()
def main() -> None:
    """Print what differs; nothing if all is equal."""
    generator = torch.Generator().manual_seed(SEED)
    layers = []
    for heads, width in ((2, 16), (1, 24)):
        query, key = torch.randn(2, 2, heads, GRID_HW[0] * GRID_HW[1], width, generator=generator)
        layers.append((query, key))
    coarse = Groups.together(torch.rand(2, 3, 4, 5, generator=generator))
    for compensation in set(get_args(Compensation)) - {"guided", "none"}:
        settings = MethodSettings(**vars(VIT_B_16), compensation=compensation, head=2)
        together = refine_together(coarse, layers, GRID_HW, settings)
        for image, found in enumerate(together):
            expected = refine(coarse[image], [(q[image], k[image]) for q, k in layers], GRID_HW, settings)
            error = (found - expected).abs().max() / expected.abs().max()
            if found.shape != expected.shape or not error < TOLERANCE:
                print(f"{compensation}, image {image}: differs by {error:.1e}")


if __name__ == "__main__":
    main()
