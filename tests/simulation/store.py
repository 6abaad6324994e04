"""An object store in memory under which a driver dies at any operation."""

import random
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem


class DiedError(BaseException):
    """The driver's process is gone. A BaseException, so that nothing but the simulation sees it."""


class SimulatedStore(MemoryFileSystem):
    """Keeps what was written when a driver dies.

    Attributes:
        operations_left: changes until the driver dies; None for a driver that lives.
        random: says whether the change that it dies of still happens.
    """

    cachable = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.operations_left: int | None = None
        self.random = random.Random(seed)

    def change(self, apply: Any) -> Any:
        """Do a change, unless the driver dies before it."""
        if self.operations_left is None:
            return apply()
        if self.operations_left == 0:
            if self.random.random() < 0.5:
                apply()
            raise DiedError
        self.operations_left -= 1
        return apply()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self.change(lambda: MemoryFileSystem.pipe_file(self, path, value, mode, **options))

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def rm_file(self, path: str) -> None:
        self.change(lambda: MemoryFileSystem._rm(self, path))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """One change for each file, as in an object store."""
        for found in self.find(path):
            self.rm_file(found)

    def tear(self, path: str) -> None:
        """What a power failure leaves of a file that was never synced: the name."""
        self.store[self._strip_protocol(path)].seek(0)
        self.store[self._strip_protocol(path)].truncate(0)
