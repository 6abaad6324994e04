"""How fast a stage could be: its arithmetic and its bytes at the rates that the device sustains."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks.clock import apart, timed
from cliper.settings import Compensation
from cliper.specs import PRECISIONS, set_torch_flags

IN_A_ROW = 10
"""Products and copies that are timed together, so that a short burst does not count as a sustained rate."""


@dataclass(frozen=True)
class Rates:
    """What a device sustains.

    Attributes:
        flop_per_s: of a large matrix product.
        bytes_per_s: read and written by a large copy.
    """

    flop_per_s: float
    bytes_per_s: float


H100 = Rates(400e12, 3.0e12)
"""Assumed before any was measured."""


AFFINITY_STAGES = ("vae", "unet", "affinity", "compensation")
"""What an affinity costs; the others are there without it too."""


class Floor(NamedTuple):
    """Least milliseconds for an image.

    Attributes:
        arithmetic, bytes: of either alone.
        both: of whichever takes longer; of several stages the sum of that.
    """

    arithmetic: float
    bytes: float
    both: float


class CountedCase(NamedTuple):
    """What `benchmarks.counts.count` needs to know."""

    clip: str
    compensation: Compensation
    batch_size: int
    classes: int
    image_hw: tuple[int, int]
    precision: str


def measure_rates(device_type: str, precision: str) -> Rates:
    """Measure a large product and a large copy on ``cpu`` or ``cuda``."""
    on_gpu = device_type == "cuda"
    set_torch_flags(on_gpu)
    device = torch.device(device_type)
    side, size_bytes = (8192, 2**30) if on_gpu else (2048, 2**28)
    a, b = torch.randn(2, side, side, device=device, dtype=PRECISIONS[precision])
    product = torch.empty_like(a)
    seconds = seconds_in_a_row(lambda: torch.mm(a, b, out=product), device)
    source = torch.ones(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(2 * side**3 / seconds, 2 * size_bytes / seconds_in_a_row(lambda: target.copy_(source), device))


def seconds_in_a_row(step: Callable[[], Any], device: torch.device) -> float:
    step()
    return min(timed(lambda: [step() for _ in range(IN_A_ROW)], device) for _ in range(3)) / IN_A_ROW


def count_apart(cases: list[CountedCase]) -> dict[CountedCase, dict[str, Any]]:
    """What `benchmarks.counts.count` finds in every case, in a process that sees no GPU. Nothing without Triton."""
    if find_spec("triton") is None:
        return {}
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        return dict(zip(cases, apart(count_all, cases), strict=True))


def count_all(cases: list[CountedCase]) -> list[dict[str, Any]]:
    from benchmarks.counts import count  # needs Triton, which is only there where torch knows CUDA

    return [count(*case[:-1], PRECISIONS[case.precision]) for case in cases]


def floors(counts: Mapping[str, Any], rates: Rates) -> dict[str, Floor]:
    """By stage, and of all of them in ``total``. What a later kernel finds in a cache counts as moved, and so does what
    compiled code no longer writes; a stage can be faster than its floor by that."""
    found = {}
    for stage, of in counts["stages"].items():
        arithmetic, moved = 1e15 * of["tflop_an_image"] / rates.flop_per_s, 1e12 * of["gb_an_image"] / rates.bytes_per_s
        found[stage] = Floor(arithmetic, moved, max(arithmetic, moved))
    return found | {"total": Floor(*map(sum, zip(*found.values(), strict=True)))}
