"""What labelling costs on a GPU: no change may move more bytes, start more kernels or wait more often unnoticed."""

import json
from typing import Any

import pytest
import torch

from benchmarks.counts import AFFINITIES, AFFINITY_TABLE, CASES, TABLE, count, count_affinity
from benchmarks.fake_cuda import fake_gpu
from cliper.groups import Groups
from cliper.labels import find_competitors, label_together
from cliper.runs import runs_from
from cliper.settings import VIT_B_16, MethodSettings

TOLERANCE = 0.1
EXACT = ("waits", "copies_to_device")


@pytest.mark.parametrize(("clip", "compensation"), CASES)
def test_counts_are_those_of_the_table(clip: str, compensation: Any) -> None:
    """After an improvement, ``python -m benchmarks.counts --write`` lowers the table."""
    assert_counts(json.loads(TABLE.read_text())[f"{clip}, {compensation}"], count(clip, compensation))


@pytest.mark.long
@pytest.mark.parametrize("name", AFFINITIES)
def test_counts_of_affinities_are_those_of_their_table(name: str) -> None:
    assert_counts(json.loads(AFFINITY_TABLE.read_text())[name], count_affinity(name))


def assert_counts(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert found["peak_gb"] == pytest.approx(expected["peak_gb"], rel=TOLERANCE)
    assert found["stages"].keys() == expected["stages"].keys()
    for stage, counts in expected["stages"].items():
        for name, value in counts.items():
            allowed = value if name in EXACT else pytest.approx(value, rel=TOLERANCE, abs=0.01)
            assert found["stages"][stage][name] == allowed, f"{stage}: {name}"


def test_labels_take_as_many_kernels_whatever_the_sizes() -> None:
    scores, settings = torch.ones(5, 3), MethodSettings(**vars(VIT_B_16))
    for sizes in ([(40, 50)] * 5, [(40, 50), (1, 700), (333, 1), (60, 80), (500, 375)]):
        with fake_gpu() as gpu:
            stacks = [torch.empty(2, 3, 9, 9, device="cuda"), torch.empty(3, 3, 7, 8, device="cuda")]
            competitors = find_competitors(scores, settings, [None, None, [], [1], None])
            labels, first = label_together(Groups([[1, 4], [0, 2, 3]], stacks), competitors, sizes, settings)
            assert [runs.image_hw for runs in runs_from(first, labels, sizes)] == sizes
        counts = gpu.stages[""]
        assert (counts.kernels, counts.waits, counts.copies_to_device) == (9, 2, 1)


def test_what_can_be_present_is_asked_once() -> None:
    """With ``skip_absent`` the host waits once more for a batch, before the diffusion model."""
    waits = [
        sum(of["waits"] for of in count("ViT-B-16", "product", 2, skip_absent=skip)["stages"].values())
        for skip in (False, True)
    ]
    assert waits == [3, 4]


def test_products_and_memory_are_counted() -> None:
    with fake_gpu() as gpu:
        left = torch.ones(100, 200, dtype=torch.float16).to("cuda")
        right = torch.empty(200, 300, dtype=torch.float16, device="cuda")
        assert gpu.used_bytes == (79 + 235) * 512  # 40,000 and 120,000 bytes in multiples of 512
        with torch.profiler.record_function("cliper/one"):
            product = left @ right
        with torch.profiler.record_function("cliper/two"):
            on_host = product.cpu()
        del left, right
        used = gpu.used_bytes
    one, two = gpu.stages["one"], gpu.stages["two"]
    assert (one.kernels, one.flop, one.waits) == (1, 2 * 100 * 200 * 300, 0)
    assert one.bytes_moved == 2 * (100 * 200 + 200 * 300 + 100 * 300)
    assert (two.waits, on_host.shape, on_host.device.type) == (1, (100, 300), "cpu")
    assert gpu.stages[""].copies_to_device == 1
    assert used == 118 * 512


def test_views_start_no_kernel() -> None:
    with fake_gpu() as gpu:
        torch.empty(4, 6, device="cuda").T.unsqueeze(0).expand(5, 6, 4).reshape(5, 24)
    assert gpu.stages[""].kernels == 1, "only reshape copies"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda on_gpu: on_gpu + torch.ones(3, 3),
        lambda on_gpu: on_gpu @ torch.ones(3, 3),
        lambda on_gpu: on_gpu.half() @ on_gpu,
        lambda on_gpu: torch.cat([on_gpu, torch.ones(3, 3)]),
    ],
)
def test_mistakes_that_a_gpu_would_refuse(mistake: Any) -> None:
    with fake_gpu(), pytest.raises((RuntimeError, TypeError)):
        mistake(torch.empty(3, 3, device="cuda"))
