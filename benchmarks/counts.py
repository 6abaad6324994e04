"""What labelling costs on a GPU, counted without one: ``python -m benchmarks.counts``, with ``--write`` to keep it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import tyro
from PIL import Image

from benchmarks import full_size
from benchmarks.fake_cuda import fake_gpu
from benchmarks.images import some_image
from benchmarks.roofline import AFFINITY_STAGES, H100, floors
from cliper.affinity import Affinity, ClipAffinity
from cliper.coarse import Queries
from cliper.models import DEMO
from cliper.pipeline import Cliper
from cliper.settings import Compensation, MethodSettings
from cliper.vision import VisionTower

TABLE = Path(__file__).with_name("counts.json")
CASES: list[tuple[str, Compensation]] = [
    (clip, compensation) for clip in ("ViT-B-16", "ViT-L-14") for compensation in ("product", "none")
]
AFFINITY_TABLE = Path(__file__).with_name("affinity_counts.json")
UNETS = {"SD 2.1-base": full_size.SD_2_1, "SD 1.5": full_size.SD_1_5, "SDXL": full_size.SD_XL}
AFFINITIES = {
    **{name: name for name in UNETS},
    "clip ViT-B/16": "clip",
    "clip ViT-L/14": "clip",
    "DINO ViT-B/8": "timm:vit_base_patch8_224.dino",
    "DINOv2 ViT-B/14": "timm:vit_base_patch14_dinov2.lvd142m",
    "DINOv3 ViT-B/16": "timm:vit_base_patch16_dinov3.lvd1689m",
    "PE-Spatial-B/16": "timm:vit_pe_spatial_base_patch16_512.fb",
    "SAM-B": "timm:samvit_base_patch16.sa1b",
}
SIDES_PX = {AFFINITIES["SAM-B"]: 1024}
"""Sizes that are not the default."""
BATCH = 8
"""The default of `cluster.session.ClusterOptions`."""
CLASSES = 21
IMAGE_HW = (375, 500)


def count(
    clip: str,
    compensation: Compensation,
    batch: int = BATCH,
    classes: int = CLASSES,
    image_hw: tuple[int, int] = IMAGE_HW,
    dtype: torch.dtype = torch.float16,
    skip_absent: bool = False,
    affinity: str = "SD 2.1-base",
) -> dict[str, Any]:
    """Label a batch on a fake GPU, with the kernels in half precision and without them in fp32, as an actor has them.
    It is not the first one: what stays on the GPU is there.

    Returns:
        ``peak_gb``; and for each stage its `StageCounts`: kernels, waits and copies of the batch, gigabytes and
        teraflop of an image.
    """
    device = torch.device("cuda")
    with fake_gpu() as gpu, patch.multiple(full_size, randomised=gpu.on_device, moved=gpu.on_device):
        tower, defaults = full_size.build_tower(clip, device, dtype)
        tower = replace(tower, kernels=dtype != torch.float32)
        model = build_affinity(affinity, clip, tower, device, dtype) if compensation != "none" else None
        rows = torch.randn(classes + 25, tower.dimensions, generator=torch.Generator().manual_seed(0))
        chosen: dict[str, Any] = {"compensation": compensation, "skip_absent": skip_absent}
        if affinity not in UNETS:
            side_px = SIDES_PX.get(affinity, 0)
            chosen |= {"affinity": affinity, "affinity_side_px": side_px} if compensation != "none" else {}
        settings = MethodSettings(**vars(defaults) | chosen)
        queries = Queries.build(rows[:classes], rows[classes:], torch.arange(classes))
        cliper = Cliper(tower, queries, settings, model, batch)
        prepared = [
            cliper.inputs.prepare(Image.fromarray(some_image(*image_hw, number)), number) for number in range(batch)
        ]
        cliper.predict(prepared[:1])
        gpu.stages.clear()
        predictions = cliper.predict(prepared)
    assert len(predictions) == batch
    stages = {}
    for name, counts in gpu.stages.items():
        found = asdict(counts)
        found["gb_an_image"] = round(found.pop("bytes_moved") / batch / 1e9, 6)
        found["tflop_an_image"] = round(found.pop("flop") / batch / 1e12, 6)
        found["mb_to_device"] = round(found.pop("bytes_to_device") / 1e6, 2)
        stages[name or "between"] = found
    return {"peak_gb": round(gpu.peak_bytes / 1e9, 2), "stages": stages}


def build_affinity(name: str, clip: str, tower: VisionTower, device: torch.device, dtype: torch.dtype) -> Affinity:
    """What sharpens maps: a Stable Diffusion of `UNETS`, ``clip`` or ``timm:NAME``. The demo's CLIP has the demo's."""
    if clip == DEMO:
        return full_size.build_diffusion(clip, device, dtype)
    if name in UNETS:
        return full_size.build_stable_diffusion(UNETS[name], device, dtype)
    if name == "clip":
        return ClipAffinity.of(tower)
    return full_size.build_timm_affinity(name.removeprefix("timm:"), device, dtype)


def count_affinity(name: str, batch: int = BATCH) -> dict[str, Any]:
    """An affinity of `AFFINITIES`, beside the CLIP model that it is told with or ViT-B/16."""
    clip = "ViT-L-14" if name == "clip ViT-L/14" else "ViT-B-16"
    return count(clip, "product" if name in UNETS else "mean", batch, affinity=AFFINITIES[name])


def main(batch: int = BATCH, write: bool = False) -> None:
    """Count all cases and print them.

    Args:
        batch: Images in the batch.
        write: Keep the counts, which the test then holds.
    """
    table = {f"{clip}, {compensation}": count(clip, compensation, batch) for clip, compensation in CASES}
    affinities = {name: count_affinity(name, batch) for name in AFFINITIES}
    for name, found in affinities.items():
        of_image = [floors(found, H100)[stage] for stage in AFFINITY_STAGES if stage in found["stages"]]
        tflop, gb = (
            sum(found["stages"].get(stage, {}).get(what, 0) for stage in AFFINITY_STAGES)
            for what in ("tflop_an_image", "gb_an_image")
        )
        print(f"{name}: {tflop:.3f} TFLOP, {gb:.2f} GB, {sum(of.both for of in of_image):.2f} ms predicted on an H100")
    for case, found in table.items():
        print(f"{case}, batch {batch}: peak {found['peak_gb']} GB")
        for stage, counts in found["stages"].items():
            print(f"  {stage:14}", ", ".join(f"{name} {value}" for name, value in counts.items()))
    if write:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
        AFFINITY_TABLE.write_text(json.dumps(affinities, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
