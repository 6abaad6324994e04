"""The progress of a job, counted by its tasks and actors (`cluster.display` shows it)."""

import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError


@dataclass
class Work:
    """Labelling an image.

    Attributes:
        process: who began it last.
        since: when, by this process's clock.
        begun: how often it was begun and never ended, because its process died.
    """

    process: str
    since: float
    begun: int


class ProgressCounter:
    """Counts over all actors and tasks, by name. An image that is labelled again after a crash counts again.

    Args:
        stall_timeout_s: after so long, a process ends itself.
    """

    def __init__(self, stall_timeout_s: float) -> None:
        self.stall_timeout_s = stall_timeout_s
        self.counts: Counter[str] = Counter()
        self.first_work_s: float | None = None
        self.works: dict[str, Work] = {}
        self.notes: dict[str, str] = {}

    def add(self, **counts: int) -> None:
        self.counts.update(counts)

    def get(self) -> tuple[Counter[str], list[str]]:
        """The counts, and sentences about processes that were lost or work around something.

        ``labelling_ms`` is the time since the work on the first image began, when its actor's models were loaded.
        """
        if self.first_work_s is not None:
            self.counts["labelling_ms"] = round(1000 * (time.monotonic() - self.first_work_s))
        for name, work in self.works.items():
            if time.monotonic() - work.since > self.stall_timeout_s:
                self.note_lost(work.process, f"made no progress for {self.stall_timeout_s:g} s and is replaced", name)
        return self.counts, list(self.notes.values())

    def begin(self, names: Sequence[str], process: str) -> list[int]:
        """How often work on each of these began before and never ended, because its process died."""
        if self.first_work_s is None:
            self.first_work_s = time.monotonic()
        before = [self.works.get(name) for name in names]
        for name, work in zip(names, before, strict=True):
            if work is not None and work.process != process:
                self.note_lost(work.process, "died and was replaced", name)
            self.works[name] = Work(process, time.monotonic(), 1 + (work.begun if work else 0))
        return [work.begun if work else 0 for work in before]

    def note_lost(self, process: str, what: str, name: str) -> None:
        self.notes.setdefault(process, f"The labelling {process} {what}; it was busy with {name}.")

    def note(self, sentence: str) -> None:
        """A sentence that the driver prints once, whichever processes send it."""
        self.notes[sentence] = sentence

    def end(self, names: Sequence[str]) -> None:
        """The work on these has ended."""
        for name in names:
            self.works.pop(name, None)


def start_counter(stall_timeout_s: float) -> ActorHandle:
    """A counter actor, which takes no CPU slot. If its node dies, it restarts elsewhere with empty counts."""
    actor: Any = ray.remote(ProgressCounter)
    handle: ActorHandle = actor.options(num_cpus=0, max_restarts=-1).remote(stall_timeout_s)
    return handle


def report(counter: ActorHandle, **counts: int) -> None:
    """Add to the counts, without waiting.

    They are ``ok`` and ``failed`` images; ``bytes_read`` and ``images_read``; ``parts_read``, of shards; ``read_ms``
    and ``prepare_ms``, the time that read tasks took for the two; ``busy_ms`` and ``idle_ms``, the time that
    labelling actors worked and waited.
    """
    counter.add.remote(**counts)


def deaths(counter: ActorHandle, names: Sequence[str]) -> list[int]:
    """Begin work on these. Returns how many processes have died of each; none if the counter has just died itself."""
    process = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        before: Any = ray.get(counter.begin.remote(names, process))
    except RayError:
        return [0] * len(names)
    found: list[int] = before
    return found
