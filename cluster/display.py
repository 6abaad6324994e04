"""What a user sees while a job runs: how much is done, how fast, until when, and what it waits for."""

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from cluster.corpus.sources import Corpus
from cluster.session import check_reachable
from cluster.sizing import Cluster, Resources

INTERVAL_S = 1.0
LOG_INTERVAL_S = 30.0
LAST_ANSWER_S = 10.0
WINDOW_S = 60.0
"""The bottleneck is that of the last minute."""
MOSTLY_BUSY = 0.8
"""Above this share of time that the actors work, they are the bottleneck; below it, they wait for images."""
STARTING = "starting the models"


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Attributes:
        images: their number, if it is known.
        shards: their number.
        parts: of shards, as read tasks take them.
    """

    images: int | None
    shards: int
    parts: int

    @classmethod
    def of(cls, corpus: Corpus, parts: int) -> "Size":
        """Of a corpus whose shards are read in so many parts together. How many images shards have is not known."""
        shards = len(corpus.shards)
        return cls(shards if corpus.format == "folder" else None, shards, parts)

    def expected_images(self, counts: Mapping[str, int]) -> int | None:
        """The number of images: known, or estimated from the shards that were read; None if none was."""
        if self.images is not None or not counts["parts_read"]:
            return self.images
        return round(counts["images_read"] * max(1.0, self.parts / counts["parts_read"]))


@dataclass(frozen=True)
class State:
    """What a job has done, and how fast.

    Attributes:
        counts: see `cluster.progress.report`.
        size: of the job.
        waiting_for: what limits the speed; empty if that is not known.
    """

    counts: Mapping[str, int]
    size: Size
    waiting_for: str = ""

    @property
    def done(self) -> int:
        return self.counts["ok"] + self.counts["failed"]

    @property
    def per_second(self) -> float:
        """Images a second, since the work on the first one began; 0 before the first one is done."""
        return 1000 * self.done / self.counts["labelling_ms"] if self.counts["labelling_ms"] else 0.0

    @property
    def total(self) -> int | None:
        """The number of images, estimated or known, and no less than are done."""
        expected = self.size.expected_images(self.counts)
        return None if expected is None else max(expected, self.done)

    def sentence(self, now: datetime) -> str:
        """The state in words, without a full stop."""
        about = "about " if self.size.images is None and self.counts["parts_read"] < self.size.parts else ""
        words = [
            f"{self.done:,}" + (f" of {about}{self.total:,}" if self.total is not None else "") + " images labelled"
        ]
        if self.size.images is None and self.counts["parts_read"]:
            read = self.size.shards * min(1.0, self.counts["parts_read"] / self.size.parts)
            words.append(f"{int(read):,} of {self.size.shards:,} shards read")
        if self.counts["failed"]:
            words.append(f"{self.counts['failed']:,} failed")
        if self.per_second:
            words.append(f"{self.per_second:.3g} a second")
            if self.total is not None:
                left = timedelta(seconds=(self.total - self.done) / self.per_second)
                words.append(f"about {in_words(left)} left (until {moment(now + left, now)})")
        said = ", ".join(words)
        return f"{said}: {self.waiting_for}" if self.waiting_for else said


def in_words(duration: timedelta) -> str:
    """A duration to two units at most."""
    minutes, seconds = divmod(round(duration.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((place for place, (count, _) in enumerate(units) if count), len(units) - 1)
    shown = [(count, unit) for count, unit in units[first : first + 2] if count] or [(0, "s")]
    return " ".join(f"{count} {unit}" for count, unit in shown)


def moment(when: datetime, now: datetime) -> str:
    return f"{when:%H:%M}" if when.date() == now.date() else f"{when:%Y-%m-%d %H:%M}"


def bottleneck(spent: Mapping[str, int], on_gpu: bool) -> str:
    """What limited the speed, from the counts of some time; empty if they do not say.

    Args:
        spent: differences of the counts of `cluster.progress.report`.
        on_gpu: the actors use GPUs.
    """
    if not spent["busy_ms"]:
        return ""
    if spent["busy_ms"] >= MOSTLY_BUSY * (spent["busy_ms"] + spent["idle_ms"]):
        return "waiting for the GPU" if on_gpu else "waiting for the models"
    if not spent["read_ms"] + spent["prepare_ms"]:
        return ""
    return "waiting for storage" if spent["read_ms"] > spent["prepare_ms"] else "waiting for the decoding of images"


class ProgressDisplay:
    """Shows a counter's state from a thread: a live bar in a terminal, a line every half minute elsewhere.

    Args:
        counter: from `cluster.progress.start_counter`.
        size: of the job.
        resources: what the actors need, to tell what the job waits for.
        console: to write to.

    Attributes:
        counts: what was counted so far. A little is missing if the counter's node has died.
        told: notes that were printed.
    """

    def __init__(self, counter: ActorHandle, size: Size, resources: Resources, console: Console) -> None:
        self.counter, self.size, self.resources, self.console = counter, size, resources, console
        self.before_restarts: Counter[str] = Counter()
        self.latest: Counter[str] = Counter()
        self.recent: deque[tuple[float, Counter[str]]] = deque()
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
    def per_second(self) -> float:
        return State(self.counts, self.size).per_second

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
                self.log(sentence)
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
                self.log(
                    f"The head of the Ray cluster ({self.head}) does not answer. Ray ends the job if that lasts a "
                    f"minute. What is written stays. The same command continues from there."
                )
            self.head_answers = False

    def log(self, sentence: str) -> None:
        """Print a line; with the time, unless somebody is looking."""
        time_stamp = "" if self.console.is_terminal else f"{datetime.now():%Y-%m-%d %H:%M:%S} "
        self.console.print(time_stamp + sentence, soft_wrap=True)

    def state(self, now_s: float) -> State:
        """What is done, ``now_s`` on the monotonic clock."""
        counts = self.counts
        state = State(counts, self.size)
        if not state.done:
            lacking = self.resources.lacking(Cluster.now())
            wait = f"waiting for the cluster to get a node with {lacking}" if lacking else STARTING
            return State(counts, self.size, waiting_for=wait)
        self.recent.append((now_s, counts))
        while now_s - self.recent[0][0] > WINDOW_S:
            self.recent.popleft()
        spent = counts - self.recent[0][1] if len(self.recent) > 1 else counts
        return State(counts, self.size, bottleneck(spent, bool(self.resources.gpus_per_actor)))

    def run(self) -> None:
        columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(STARTING, total=None)
            waited = 0.0
            while not self.finished.wait(INTERVAL_S):
                self.check_head()
                self.ask(INTERVAL_S)
                state = self.state(time.monotonic())
                sentence = state.sentence(datetime.now())
                bar.update(task, completed=state.done, total=state.total, description=sentence)
                waited += INTERVAL_S
                if not self.console.is_terminal and waited % LOG_INTERVAL_S == 0:
                    self.log(sentence)
