"""Compiles the parts of small models; the test runs it in a process of its own, because the shape checks of the tests
cannot be compiled: ``python -m tests.cliper.compile_parts CLIP DIFFUSION [CALLS] [BACKEND]``.
"""

import random
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from cliper.diffusion import DiffusionModel
from cliper.pipeline import Cliper
from cliper.selfcheck import check_compiled
from tests.cliper.test_pipeline import build, some_image
from tests.support.stages import prepare

BATCHES = 4


def slightly_wrong(graph: torch.fx.GraphModule, _: Any) -> Any:
    return lambda *inputs: [1.2 * output for output in graph(*inputs)]


def check_one_piece(cliper: Cliper, backend: str) -> None:
    """Each part is compiled without a break, and does what it did."""
    problems: list[str] = []
    assert isinstance(cliper.affinity, DiffusionModel)
    check_compiled(cliper.affinity, BATCHES, problems, backend=backend, fullgraph=True)
    assert not problems, problems
    assert cliper.affinity.encoder.fast is not None
    cliper.warm_up()


def check_what_differs(cliper: Cliper) -> None:
    """Parts whose compiled code is wrong run as they are, and are told."""
    problems: list[str] = []
    assert isinstance(cliper.affinity, DiffusionModel)
    check_compiled(cliper.affinity, 2, problems, backend=slightly_wrong)
    assert {problem.split()[1] for problem in problems} == {"autoencoder", "UNet"}, problems
    assert cliper.affinity.encoder.fast is cliper.affinity.cut_unet.fast is None


def check_threads(cliper: Cliper, calls: int) -> None:
    """Two threads label while the other one may compile for a batch of another size."""
    prepared, errors, sizes = prepare(cliper.inputs, [some_image()], [5]), list[BaseException](), random.Random(0)

    def label() -> None:
        try:
            for call in range(calls // 2):
                if call % max(calls // 20, 1) == 0:
                    cliper.batch = cliper.largest_batch = sizes.randint(1, BATCHES)
                cliper.predict(prepared)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=label) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def main(clip: str, diffusion: str, calls: str = "20", backend: str = "aot_eager") -> None:
    cliper = build(Path(clip), Path(diffusion))
    check_what_differs(cliper)
    check_one_piece(cliper, backend)
    check_threads(cliper, int(calls))


if __name__ == "__main__":
    main(*sys.argv[1:])
