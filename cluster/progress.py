"""How far the job is: actors count, the driver shows."""

import threading
from types import TracebackType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

INTERVAL_S = 1.0
LOG_INTERVAL_S = 30.0


class ProgressCounter:
    """Counts annotated images over all actors; a picture that is done again after a crash counts again."""

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        self.bytes = 0

    def add(self, ok: int, failed: int) -> None:
        self.ok += ok
        self.failed += failed

    def add_bytes(self, count: int) -> None:
        self.bytes += count

    def counts(self) -> tuple[int, int]:
        return self.ok, self.failed

    def bytes_read(self) -> int:
        return self.bytes


def start_counter() -> ActorHandle:
    """A counter actor; it takes no CPU slot and lives on the driver's node, which the job does not outlive anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(ProgressCounter)
    handle: ActorHandle = actor.options(num_cpus=0, scheduling_strategy=here).remote()
    return handle


def report_bytes(counter: ActorHandle, count: int) -> None:
    """Add to the bytes that were read."""
    counter.add_bytes.remote(count)


class ProgressDisplay:
    """Shows a counter's state from a thread: a live bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, counter: ActorHandle, total: int | None, console: Console) -> None:
        self.counter, self.total, self.console = counter, total, console
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finished.set()
        self.thread.join()

    def counts(self) -> tuple[int, int]:
        counts: Any = ray.get(self.counter.counts.remote(), timeout=INTERVAL_S)
        return counts

    def run(self) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("Labelling", total=self.total, note="starting the models")
            waited = 0.0
            while not self.finished.wait(INTERVAL_S):
                try:
                    ok, failed = self.counts()
                except RayError:
                    continue
                done = ok + failed
                note = (f"{failed} failed" if failed else "") if done else "starting the models"
                bar.update(task, completed=done, note=note)
                waited += INTERVAL_S
                if not self.console.is_terminal and waited % LOG_INTERVAL_S == 0:
                    self.console.print(f"{done:,} images labelled {note}".rstrip(), highlight=False)
