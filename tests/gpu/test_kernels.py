"""The kernels without a GPU: interpreted beside their plain versions, compiled for GPUs that are not there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch

from cliper import attention_kernels, selfcheck
from cliper.groups import Groups
from cliper.labels import Competitors, label_map
from cliper.runs import first_pixels
from cliper.selfcheck import Case, disagreements
from cliper.settings import MethodSettings
from tests.gpu.compiled import ARCHITECTURES, KERNELS, SIGNATURES

CPU = torch.device("cpu")
Change = Callable[[torch.Tensor], torch.Tensor]
MOST_SPILLED_BYTES = 200
"""Each thread's; none of the kernels keeps more than that out of its registers."""


def run_module(name: str, *arguments: str, **environment: str) -> str:
    """What a module prints in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", name, *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.long
def test_kernels_equal_their_plain_versions() -> None:
    """Sizes that divide no tile, small and extreme logits, fp16, bf16 and fp32."""
    assert run_module("tests.gpu.interpreted", TRITON_INTERPRET="1") == ""


@pytest.mark.long
@pytest.mark.parametrize("module", ["towers", "heads"])
def test_towers_of_other_families_and_single_heads_go_through_the_kernels(module: str) -> None:
    assert run_module(f"tests.gpu.{module}", TRITON_INTERPRET="1") == ""


@pytest.mark.slow
def test_a_recorded_case_passes_through_the_kernels() -> None:
    """One without compensation: the interpreter takes minutes for 4,096 positions."""
    case = "refine_none and not text"
    printed = run_module("pytest", "tests/golden", "-p", "no:cacheprovider", "-k", case, TRITON_INTERPRET="1")
    assert "5 passed" in printed


@pytest.mark.slow
def test_kernels_compile_for_every_architecture() -> None:
    found = [json.loads(line) for line in run_module("tests.gpu.compiled").splitlines()]
    assert {(compiled["kernel"], compiled["architecture"]) for compiled in found} == {
        (name, architecture) for name in SIGNATURES for architecture in ARCHITECTURES
    }
    assert set(SIGNATURES) == set(KERNELS)
    assert max(compiled["spilled_bytes"] for compiled in found) <= MOST_SPILLED_BYTES, found


def test_a_device_that_cannot_run_them_is_reported() -> None:
    found = disagreements(CPU, Case(torch.float32))
    assert [problem.partition(":")[0] for problem in found] == [
        "check_early_maps",
        "check_fusion",
        "check_compensation",
        "check_labels",
    ]


def plain_early_sum(qkv: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    heads = lse.shape[2]
    query, key, _ = qkv.float().unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return (logits - lse[..., None]).exp().sum(dim=0)


def test_wrong_results_are_reported() -> None:
    """A sum that is right is accepted. One that is a hundredth off is not, nor are maps that stay as they are."""
    fusion = selfcheck.check_fusion
    for factor, wrong in [(1.0, []), (1.01, ["early_sum"])]:
        with (
            patch.object(attention_kernels, "early_sum", lambda *of, factor=factor: factor * plain_early_sum(*of)),
            patch.object(attention_kernels, "scaling_rounds", side_effect=InterruptedError),
            pytest.raises(InterruptedError),
            patch.object(selfcheck, "differing", wraps=selfcheck.differing) as compared,
        ):
            fusion(CPU, Case(torch.float32), torch.Generator().manual_seed(0))
        assert [problem.partition(":")[0] for problem in selfcheck.differing(*compared.call_args.args)] == wrong
    with patch.object(attention_kernels, "spread_heads", lambda maps, *_: maps):
        problems = selfcheck.check_compensation(CPU, Case(torch.float32), torch.Generator().manual_seed(0))
    assert [problem[:14] for problem in problems] == ["spread, preset", "spread, preset"]


@pytest.mark.parametrize(
    ("labels_change", "first_change", "wrong"),
    [
        (lambda labels: labels, lambda first: first, []),
        (
            lambda labels: labels.roll(1),
            lambda first: first,
            ["of the pixels differ", "the last of equal values wins", "runs begin elsewhere"],
        ),
        (lambda labels: labels, lambda first: first.roll(1), ["runs begin elsewhere"]),
    ],
)
def test_wrong_labels_are_reported(labels_change: Change, first_change: Change, wrong: list[str]) -> None:
    def plain_labels(
        refined: Groups, competitors: Sequence[Competitors], sizes: Any, settings: MethodSettings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        maps = [label_map(*of, settings) for of in zip(refined, competitors, sizes, strict=True)]
        labels, first = (torch.cat([of.flatten() for of in parts]) for parts in (maps, map(first_pixels, maps)))
        return labels_change(labels), first_change(first)

    with patch.object(selfcheck, "label_together", plain_labels):
        problems = selfcheck.check_labels(CPU, Case(torch.float32), torch.Generator().manual_seed(0))
    assert len(problems) == 4 * len(wrong)
    assert all(any(kind in problem for kind in wrong) for problem in problems)
