"""The kernels beside their plain versions in Triton's interpreter; the test runs it in a process of its own, because
``TRITON_INTERPRET`` must be set before Triton is imported.
"""

import itertools

import torch

from cliper.selfcheck import Case, disagreements

FORMATS = {torch.float16: 2e-3, torch.float32: 5e-5}
"""Formats, and the error relative to the largest value that rounding large logits allows. The interpreter multiplies
the bits of bf16 as if they were integers; the kernels are not used with it."""
SIZES = [
    {"tokens": 50, "heads": 2, "width": 16, "side": 7, "classes": 3, "strength": 1.0},
    {"tokens": 65, "heads": 1, "width": 24, "side": 9, "classes": 33, "strength": 8.0},
    {"tokens": 129, "heads": 2, "width": 16, "side": 8, "classes": 1, "strength": 30.0},
    {"tokens": 17, "heads": 1, "width": 16, "side": 9, "classes": 260, "strength": 4.0},
]
SEEDS = range(3)


def main() -> None:
    """Print what differs; nothing if all is equal."""
    torch.set_num_threads(1)
    for seed, (dtype, tolerance), sizes in itertools.product(SEEDS, FORMATS.items(), SIZES):
        case = Case(dtype=dtype, tolerance=tolerance, **sizes)
        for difference in disagreements(torch.device("cpu"), case, seed):
            print(f"{case}, seed {seed}: {difference}")


if __name__ == "__main__":
    main()
