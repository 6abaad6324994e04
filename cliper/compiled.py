"""Parts of a model that `torch.compile` makes faster, and that run as they are where it fails."""

import logging
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = ("ALLOC_FAILED", "out of memory", "can't allocate memory")
"""In messages of cuBLAS and cuDNN, of the driver, and of torch on a CPU."""


def is_out_of_memory(error: Exception) -> bool:
    """True for torch's own errors of a GPU and a CPU, and for those of libraries, which torch only passes on."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY))


class CompiledPart:
    """A module that is called as it is until `compile`, compiled after it.

    Calls of one process must come one after the other: torch 2.11 raises if a compiled function is called while another
    thread compiles.

    Args:
        name: for messages.
        plain: the module.
    """

    def __init__(self, name: str, plain: nn.Module) -> None:
        self.name, self.plain = name, plain
        self.fast: Any = None
        self.problems: list[str] = []

    def compile(self, problems: list[str], **options: Any) -> None:
        """Compile at the next call with inputs of a new shape.

        Args:
            problems: gets a sentence if compiling fails or compiled code does. The module then runs as it is.
            options: of `torch.compile`.
        """
        self.problems = problems
        self.fast = torch.compile(self.plain, dynamic=False, **options)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if self.fast is None:
            return self.plain(*inputs, **options)
        try:
            return self.fast(*inputs, **options)
        except Exception as error:  # a compiler's errors have no common class
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise  # it says nothing about the compiled code
            result = self.plain(*inputs, **options)  # if this fails too, the compiled code is not to blame
            self.give_up(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return result

    def give_up(self, reason: str) -> None:
        """Run as it is from now on."""
        self.fast = None
        self.problems.append(f"the {self.name} runs uncompiled: {reason}")
        logger.warning("%s", self.problems[-1])
