"""The kernels beside their plain versions in Triton's interpreter; the test runs it in a process of its own, because
``TRITON_INTERPRET`` must be set before Triton is imported.
"""

import itertools
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from cliper.selfcheck import TOLERANCES, Case, disagreements

SIZES = [
    {"tokens": 50, "heads": 2, "width": 16, "side": 7, "classes": 3, "strength": 1.0},
    {"tokens": 65, "heads": 1, "width": 24, "side": 9, "classes": 33, "strength": 8.0},
    {"tokens": 129, "heads": 2, "width": 16, "side": 8, "classes": 1, "strength": 30.0},
]
MANY_CLASSES = {"tokens": 17, "heads": 1, "width": 16, "side": 9, "classes": 260, "strength": 4.0}
"""Interpreted once: it takes longer than the others together."""
multiply = InterpreterBuilder.create_dot


def multiply_bf16(builder: InterpreterBuilder, left: TensorHandle, right: TensorHandle, *rest: Any) -> TensorHandle:
    """The interpreter keeps bf16 as integers, whose bits it would multiply. Products of bf16 are exact in fp32."""
    return multiply(builder, as_fp32(left), as_fp32(right), *rest)


def as_fp32(values: TensorHandle) -> TensorHandle:
    if values.dtype.scalar != tl.bfloat16:
        return values
    return TensorHandle((values.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


@patch.object(InterpreterBuilder, "create_dot", multiply_bf16)
def main() -> None:
    """Print what differs; nothing if all is equal."""
    torch.set_num_threads(1)
    cases = [*itertools.product(TOLERANCES, SIZES), (torch.float16, MANY_CLASSES)]
    for seed, (dtype, sizes) in enumerate(cases):
        case = Case(dtype, **sizes)
        for difference in disagreements(torch.device("cpu"), case, seed):
            print(f"{case}, seed {seed}: {difference}")


if __name__ == "__main__":
    main()
