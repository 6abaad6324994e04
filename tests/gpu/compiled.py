"""Compiles the kernels for GPUs that are not there: ``python -m tests.gpu.compiled`` prints registers and spills."""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cliper import attention_kernels, label_kernels

ARCHITECTURES = (80, 89, 90)
"""A100; L4 and L40S; H100 and H200."""
KERNELS = {
    name: kernel
    for module in (attention_kernels, label_kernels)
    for name, kernel in vars(module).items()
    if name.endswith("_kernel")
}
HALVES = ("*fp16", "*bf16")
HALF, SINGLE, NUMBER, FACTOR = "*fp16", "*fp32", "i32", "fp32"
INTEGERS, BYTES = "*i64", "*u8"
TILES = {"width": 64, "padded": 64, "tile": attention_kernels.TILE}
SIGNATURES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "early_sum_kernel": (
        {"qkv": HALF, "lse": SINGLE, "total": HALF}
        | dict.fromkeys(["layers", "tokens", "heads", "layer_stride", "batch_stride", "token_stride"], NUMBER)
        | {"scale": FACTOR},
        TILES,
    ),
    "scaling_round_kernel": (
        {"total": HALF}
        | dict.fromkeys(["parts_before", "parts", "rows_out", "sums_out"], SINGLE)
        | dict.fromkeys(["tokens", "parts_count"], NUMBER),
        {"first_round": False, "tile": attention_kernels.TILE},
    ),
    "symmetric_product_kernel": (
        {"total": HALF, "row_scales": SINGLE, "column_scales": SINGLE, "means": SINGLE, "value": HALF, "mixed": HALF}
        | {"sums_out": SINGLE, "tokens": NUMBER, "heads": NUMBER},
        TILES,
    ),
    "mean_attention_kernel": (
        {"total": HALF}
        | dict.fromkeys(["row_scales", "column_scales", "means", "row_sums", "mean_out"], SINGLE)
        | dict.fromkeys(["tokens", "heads"], NUMBER),
        {"tile": attention_kernels.TILE},
    ),
    "row_normaliser_kernel": (
        {"query": HALF, "key": HALF, "lse": SINGLE}
        | dict.fromkeys(["positions", "heads", "batch_stride", "head_stride", "position_stride"], NUMBER)
        | {"scale": FACTOR},
        TILES,
    ),
    "column_peaks_kernel": (
        {"query": HALF, "key": HALF, "lse": SINGLE, "peaks": SINGLE}
        | dict.fromkeys(["positions", "heads", "batch_stride", "head_stride", "position_stride"], NUMBER)
        | {"scale": FACTOR},
        TILES,
    ),
    "spread_kernel": (
        {"query": HALF, "key": HALF, "lse": SINGLE, "peaks": SINGLE, "maps": SINGLE, "spread_out": SINGLE}
        | dict.fromkeys(["positions", "heads", "head", "batch_stride", "head_stride", "position_stride"], NUMBER)
        | {"classes": NUMBER, "scale": FACTOR, "threshold": FACTOR},
        TILES | {"relative": True, "class_tile": attention_kernels.CLASSES},
    ),
    "map_extremes_kernel": (
        {"maps": SINGLE, "images": INTEGERS, "numbers": INTEGERS, "highest": SINGLE, "lowest": SINGLE},
        {"tile": label_kernels.PIXELS},
    ),
    "winning_labels_kernel": (
        {"maps": SINGLE, "images": INTEGERS, "numbers": INTEGERS}
        | dict.fromkeys(["scores", "floors", "highest", "lowest"], SINGLE)
        | {"labels": BYTES},
        {"normalize": True, "has_thresholds": False, "tile": label_kernels.PIXELS},
    ),
    "first_pixels_kernel": (
        {"labels": BYTES, "images": INTEGERS, "first_out": "*i1"},
        {"tile": label_kernels.PIXELS},
    ),
}  # fmt: skip
"""For each kernel the types of its arguments and its constants, as for ViT-L/14 and Stable Diffusion 2.1-base."""


UNFUSED = ("map_extremes_kernel", "winning_labels_kernel")
MANY_WARPS = ("early_sum_kernel", "mean_attention_kernel", "spread_kernel")


class Compiled(NamedTuple):
    """What the assembler says of a kernel."""

    kernel: str
    half: str
    architecture: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def compile_all() -> Iterator[Compiled]:
    """Compile every kernel for every architecture."""
    for (name, (signature, constants)), half in product(SIGNATURES.items(), HALVES):
        if HALF in signature.values():
            # The sum of early maps is in fp16 whatever the tower's format.
            signature = {key: half if kind == HALF and key != "total" else kind for key, kind in signature.items()}
        elif half != HALF:
            continue
        aligned = {(index,): [["tt.divisibility", 16]] for index, kind in enumerate(signature.values()) if "*" in kind}
        source = ASTSource(
            fn=KERNELS[name], signature=signature | dict.fromkeys(constants, "constexpr"),
            constexprs=constants, attrs=aligned,
        )  # fmt: skip
        for architecture in ARCHITECTURES:
            warps = attention_kernels.MANY_WARPS if name in MANY_WARPS else 4
            options = {"num_warps": warps, "enable_fp_fusion": name not in UNFUSED}
            built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
            usage = resource_usage(built.asm["cubin"])
            registers, stack = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
            yield Compiled(name, half, architecture, registers, stack, built.metadata.shared)


def resource_usage(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for found in compile_all():
        print(json.dumps(found._asdict()))
