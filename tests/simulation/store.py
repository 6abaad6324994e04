"""An object store in memory whose operations take time, fail, and are seen late by listings."""

from collections.abc import Callable
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from tests.simulation.world import World


class SimulatedStore(MemoryFileSystem):
    """Keeps what was written when a process dies.

    Attributes:
        world: whose processes take turns here.
        fails: share of operations that fail, half of them after they had their effect.
        listed_after_s: how long listings do not show a new file, and still show a deleted one.
    """

    cachable = False

    def __init__(self, world: World, listed_after_s: float = 0.0) -> None:
        super().__init__(global_store=False)
        self.world, self.fails, self.listed_after_s = world, 0.0, listed_after_s
        self.written: dict[str, float] = {}
        self.unsynced: set[str] = set()

    def change(self, apply: Callable[[], None]) -> None:
        """Raises OSError."""
        fails = self.world.random.random() < self.fails
        if fails and self.world.random.random() < 0.5:
            self.world.step()
            raise OSError("503: slow down")
        self.world.change(apply)
        if fails:
            raise OSError("the connection was closed")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        def write() -> None:
            if path not in self.store:
                self.written[path] = self.world.now
            MemoryFileSystem.pipe_file(self, path, value, mode, **options)

        self.change(write)

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def rm_file(self, path: str) -> None:
        self.change(lambda: MemoryFileSystem._rm(self, path))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """One change for each file, as in an object store."""
        for found in self.find(path):
            self.rm_file(found)

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        self.world.step()
        return super().cat_file(path, *args, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self.world.step()
        found = super().ls(path, detail=True, **options)
        shown = [info for info in found if not self.is_new(info["name"])]
        return shown if detail else [info["name"] for info in shown]

    def is_new(self, path: str) -> bool:
        return self.world.now - self.written.get(path, -1e9) < self.listed_after_s

    def lose_power(self) -> None:
        """Of files that were never synced, only the names are left."""
        for path in self.unsynced & self.store.keys():
            self.store[path].seek(0)
            self.store[path].truncate(0)
        self.unsynced.clear()
