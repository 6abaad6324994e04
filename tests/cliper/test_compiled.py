"""Compiled parts: what fails or differs runs as it is and is told, and threads do not disturb each other."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cliper.compiled import CompiledPart


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def broken_compiler(*_: Any) -> Any:
    raise RuntimeError("no compiler here\nand a long story")


def out_of_memory(*_: Any) -> Any:
    def run(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    return run


def test_what_cannot_be_compiled_runs_as_it_is_and_is_told_once() -> None:
    part, problems = CompiledPart("part", Double()), list[str]()
    part.compile(problems, backend=broken_compiler)
    assert part(torch.ones(2)).tolist() == part(torch.ones(2)).tolist() == [2, 2]
    assert len(problems) == 1
    assert problems[0].startswith("the part runs uncompiled: ")
    assert "\n" not in problems[0]


def test_compiled_code_that_runs_out_of_memory_stays() -> None:
    part, problems = CompiledPart("part", Double()), list[str]()
    part.compile(problems, backend=out_of_memory)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            part(torch.ones(2))
    assert not problems


def test_an_error_of_the_module_itself_is_not_the_compilers() -> None:
    part, problems = CompiledPart("part", Double()), list[str]()
    part.compile(problems, backend="aot_eager")
    with pytest.raises(TypeError):
        part("no tensor", "and too many")
    assert not problems


@pytest.mark.long
def test_parts_are_compiled_compared_and_shared_by_threads(tiny_clip: Path, tiny_diffusion: Path) -> None:
    command = [sys.executable, "-m", "tests.cliper.compile_parts", str(tiny_clip), str(tiny_diffusion), "1000"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
