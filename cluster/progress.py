"""The progress of a job: tasks and actors count, the driver shows."""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cluster.session import check_reachable
from cluster.sizing import Cluster, Resources

INTERVAL_S = 1.0
LOG_INTERVAL_S = 30.0
LAST_ANSWER_S = 10.0
STARTING = "starting the models"


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
        self.works: dict[str, Work] = {}
        self.notes: dict[str, str] = {}

    def add(self, **counts: int) -> None:
        self.counts.update(counts)

    def get(self) -> tuple[Counter[str], list[str]]:
        """The counts, and sentences about processes that were lost or work around something."""
        for name, work in self.works.items():
            if time.monotonic() - work.since > self.stall_timeout_s:
                self.note_lost(work.process, f"made no progress for {self.stall_timeout_s:g} s and is replaced", name)
        return self.counts, list(self.notes.values())

    def begin(self, names: Sequence[str], process: str) -> list[int]:
        """How often work on each of these began before and never ended, because its process died."""
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
    """Add to the counts ``ok``, ``failed`` (images) and ``bytes_read`` (of images), without waiting."""
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


class ProgressDisplay:
    """Shows a counter's state from a thread: a live bar in a terminal, a line every half minute elsewhere.

    Args:
        counter: from `start_counter`.
        total: number of images, if it is known.
        resources: what the actors need, to tell what the job waits for.
        console: to write to.

    Attributes:
        counts: what was counted so far. A little is missing if the counter's node has died.
        told: notes that were printed.
    """

    def __init__(self, counter: ActorHandle, total: int | None, resources: Resources, console: Console) -> None:
        self.counter, self.total, self.resources, self.console = counter, total, resources, console
        self.before_restarts: Counter[str] = Counter()
        self.latest: Counter[str] = Counter()
        self.told: list[str] = []
        self.head, self.head_answers = ray.get_runtime_context().gcs_address, True
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
        self.ask(LAST_ANSWER_S)

    @property
    def counts(self) -> Counter[str]:
        return self.before_restarts + self.latest

    def ask(self, timeout_s: float) -> None:
        """Read the counter, and print new notes. Nothing happens if it does not answer."""
        try:
            answer: Any = ray.get(self.counter.get.remote(), timeout=timeout_s)
        except RayError:
            return
        found, notes = answer
        for sentence in notes:
            if sentence not in self.told:
                self.console.print(sentence, soft_wrap=True)
                self.told.append(sentence)
        if not self.latest <= found:
            self.before_restarts = self.counts
        self.latest = found

    def check_head(self) -> None:
        """Say it if the cluster's head is gone: Ray ends this process after a minute, and says nothing."""
        try:
            check_reachable(self.head)
            self.head_answers = True
        except OSError:
            if self.head_answers:
                self.console.print(
                    f"The head of the Ray cluster ({self.head}) does not answer. Ray ends the job if that lasts a "
                    f"minute. What is written stays. The same command continues from there.",
                    soft_wrap=True,
                )
            self.head_answers = False

    def note(self) -> str:
        """What to show beside the number of images."""
        if self.counts["failed"]:
            return f"{self.counts['failed']:,} failed"
        if self.counts["ok"]:
            return ""
        lacking = self.resources.lacking(Cluster.now())
        return f"waiting for the cluster to get a node with {lacking}" if lacking else STARTING

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
            task = bar.add_task("Labelling", total=self.total, note=STARTING)
            waited = 0.0
            while not self.finished.wait(INTERVAL_S):
                self.check_head()
                self.ask(INTERVAL_S)
                done, note = self.counts["ok"] + self.counts["failed"], self.note()
                bar.update(task, completed=done, note=note)
                waited += INTERVAL_S
                if not self.console.is_terminal and waited % LOG_INTERVAL_S == 0:
                    self.console.print(f"{done:,} images labelled" + (f": {note}" if note else ""))
