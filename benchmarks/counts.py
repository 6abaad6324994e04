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
from cliper.coarse import Queries
from cliper.pipeline import Cliper
from cliper.settings import Compensation, MethodSettings

TABLE = Path(__file__).with_name("counts.json")
CASES: list[tuple[str, Compensation]] = [
    (clip, compensation) for clip in ("ViT-B-16", "ViT-L-14") for compensation in ("product", "none")
]
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
        diffusion = full_size.build_diffusion(clip, device, dtype) if compensation != "none" else None
        rows = torch.randn(classes + 25, tower.dimensions, generator=torch.Generator().manual_seed(0))
        settings = MethodSettings(**vars(defaults) | {"compensation": compensation, "skip_absent": skip_absent})
        queries = Queries.build(rows[:classes], rows[classes:], torch.arange(classes))
        cliper = Cliper(tower, queries, settings, diffusion, batch)
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


def main(batch: int = BATCH, write: bool = False) -> None:
    """Count all cases and print them.

    Args:
        batch: Images in the batch.
        write: Keep the counts, which the test then holds.
    """
    table = {f"{clip}, {compensation}": count(clip, compensation, batch) for clip, compensation in CASES}
    for case, found in table.items():
        print(f"{case}, batch {batch}: peak {found['peak_gb']} GB")
        for stage, counts in found["stages"].items():
            print(f"  {stage:14}", ", ".join(f"{name} {value}" for name, value in counts.items()))
    if write:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
