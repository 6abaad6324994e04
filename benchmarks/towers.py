"""Size and arithmetic of image towers that open_clip lists, accepted or not: docs/towers.svg and a table.

Nothing is loaded: shapes alone run through the towers, and torch counts the products. ``native``: the library's own
forward pass at the size that the tower was trained with. ``dense``: what CLIPer computes for an image of 336 x 448
pixels (sides rounded to whole patches): all blocks but the last, the sum of their attention maps, and the dense
features.

Run it from the repository root: ``python -m benchmarks.towers``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
import tyro
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_page import save
from cliper.fusion import fuse
from cliper.models import ModelError, image_tower, known_clip
from cliper.preprocess import InputSpec
from cliper.settings import MethodSettings, encoder_defaults
from cliper.vision import VisionTower

IMAGE_HW = (336, 448)
COLOURS = {
    "CLIP": "#555555", "SigLIP": "#1f77b4", "SigLIP 2": "#17becf", "EVA": "#2ca02c", "PE-Core": "#d62728",
    "ConvNeXt": "#bcbd22", "ViTamin": "#9467bd", "MobileCLIP": "#e377c2", "ResNet": "#8c564b",
}  # fmt: skip
TOWERS = {
    "CLIP": ("ViT-B-16:openai", "ViT-L-14:openai", "ViT-H-14:dfn5b", "ViT-bigG-14:metaclip_fullcc"),
    "SigLIP": ("ViT-B-16-SigLIP-384:webli", "ViT-L-16-SigLIP-384:webli", "ViT-SO400M-14-SigLIP-378:webli"),
    "SigLIP 2": (
        "ViT-B-32-SigLIP2-256:webli", "ViT-B-16-SigLIP2:webli", "ViT-B-16-SigLIP2-512:webli",
        "ViT-L-16-SigLIP2-512:webli", "ViT-SO400M-16-SigLIP2-512:webli", "ViT-gopt-16-SigLIP2-384:webli",
    ),
    "EVA": (
        "EVA01-g-14:laion400m_s11b_b41k", "EVA02-B-16:merged2b_s8b_b131k", "EVA02-L-14:merged2b_s4b_b131k",
        "EVA02-L-14-336:merged2b_s6b_b61k", "EVA02-E-14-plus:laion2b_s9b_b144k",
    ),
    "PE-Core": (
        "PE-Core-T-16-384:meta", "PE-Core-S-16-384:meta", "PE-Core-B-16:meta", "PE-Core-L-14-336:meta",
        "PE-Core-bigG-14-448:meta",
    ),
    "MobileCLIP": ("MobileCLIP2-L-14:dfndr2b", "MobileCLIP-S1:datacompdr", "MobileCLIP-B:datacompdr"),
    "ConvNeXt": ("convnext_base_w:laion2b_s13b_b82k", "convnext_xxlarge:laion2b_s34b_b82k_augreg"),
    "ViTamin": ("ViTamin-S:datacomp1b", "ViTamin-L-336:datacomp1b"),
    "ResNet": ("RN50:openai", "RN50x16:openai"),
}  # fmt: skip
"""By family; of each image tower one name."""


class Cost(NamedTuple):
    """A tower's.

    Attributes:
        parameters: of the image tower.
        native, dense: operations for an image; ``dense`` is None if the tower is refused.
    """

    architecture: str
    family: str
    parameters: int
    native: float
    dense: float | None


def cost_of(name: str, family: str) -> Cost:
    architecture = name.partition(":")[0]
    model_cfg = open_clip.get_model_config(architecture)
    model = image_tower(model_cfg).eval()
    side = model_cfg["vision_cfg"]["image_size"]
    native = operations(lambda: model(torch.empty(1, 3, side, side, device="meta")))
    parameters = sum(of.numel() for of in model.parameters())
    try:
        known_clip(name)
    except ModelError:
        return Cost(architecture, family, parameters, native, None)
    tower = VisionTower(model, (0.5,) * 3, (0.5,) * 3)
    settings = MethodSettings(**vars(encoder_defaults(tower.patch_size_px, len(tower.blocks))))
    height, width = InputSpec(settings.shorter_side_px, tower.patch_size_px).clip_hw(IMAGE_HW)
    dense = operations(lambda: fuse(tower, torch.empty(1, 3, height, width, device="meta"), settings))
    return Cost(architecture, family, parameters, native, dense)


def operations(run: Callable[[], Any]) -> float:
    """Multiplications and additions of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:  # gradients stay on: torch's fused modules would not be counted
        run()
    return float(counter.get_total_flops())


def draw(costs: list[Cost], path: Path) -> None:
    """Operations, a row for each tower: at the native size, and for CLIPer where the tower is accepted."""
    figure = Figure((9, 0.6 + 0.22 * len(costs)), layout="constrained")
    axis = figure.subplots()
    labels: dict[str, Any] = {}
    for row, cost in enumerate(costs):
        colour, native = COLOURS[cost.family], cost.native / 1e12
        if cost.dense is None:
            labels["native size, refused"] = axis.scatter(native, row, s=30, marker="x", color=colour)
        else:
            dense = cost.dense / 1e12
            labels["native size"] = axis.scatter(native, row, s=30, facecolor="none", edgecolor=colour)
            axis.plot([native, dense], [row, row], color=colour, linewidth=0.8)
            labels["CLIPer, 336 x 448 pixels"] = axis.scatter(dense, row, s=30, color=colour)
    names = [f"{cost.architecture}, {cost.parameters / 1e6:,.0f} M" for cost in costs]
    axis.set(xscale="log", xlabel="TFLOP per image, image tower", yticks=range(len(costs)), ylim=(len(costs), -1))
    axis.set_yticklabels(names, fontsize=7)
    axis.grid(color="#eeeeee")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(labels.values(), labels.keys(), frameon=False, fontsize=8, loc="lower right")
    save(figure, path)


def main(figure: Path = Path("docs/towers.svg")) -> None:
    """Count all towers, print the table, and draw the figure.

    Args:
        figure: Where the figure goes.
    """
    costs = [cost_of(name, family) for family, names in TOWERS.items() for name in names]
    for cost in costs:
        dense = "refused" if cost.dense is None else f"{cost.dense / 1e12:.3f}"
        print(f"| {cost.architecture} | {cost.parameters / 1e6:.0f} | {cost.native / 1e12:.3f} | {dense} |")
    draw(costs, figure)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
