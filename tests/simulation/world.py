"""Processes that take turns at every operation of the storage, and a clock that moves only while they work or sleep."""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

from greenlet import GreenletExit, getcurrent, greenlet

from cluster.output import lease

STEP_S = 0.05
"""Time that an operation of the storage takes."""


@dataclass(eq=False)
class Process:
    """Tasks that die and pause together.

    Attributes:
        name: of its run.
        changes_left: changes of the storage until it dies; None if it lives.
        pause_at: changes until it stands still, and for how many seconds.
        companion: a process that goes on for ``outlives`` changes after the death of this one.
        error: what ended the main task, if not its own return.
    """

    name: str = ""
    changes_left: int | None = None
    pause_at: tuple[int, float] | None = None
    companion: "Process | None" = None
    outlives: int = 0
    alive: bool = True
    paused_until: float = 0.0
    interrupted: bool = False
    error: BaseException | None = None


@dataclass(eq=False)
class Task:
    """A thread of a process."""

    process: Process
    greenlet: greenlet
    is_main: bool
    wakes_at: float = 0.0


@dataclass
class World:
    """Runs tasks in an order drawn from a seed."""

    seed: int
    now: float = 0.0
    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.hub = getcurrent()

    def spawn(self, process: Process, function: Callable[[], None], is_main: bool = True) -> Task:
        task = Task(process, greenlet(lambda: self.guarded(process, function, is_main)), is_main, self.now)
        self.tasks.append(task)
        return task

    def guarded(self, process: Process, function: Callable[[], None], is_main: bool) -> None:
        try:
            function()
        except (Exception, KeyboardInterrupt) as error:
            process.error = error
        if is_main:  # other threads are daemons
            process.alive = False

    def run(self) -> None:
        """Until no task is left."""
        self.hub = getcurrent()
        with self.instead_of_the_real_one():
            while living := [task for task in self.tasks if task.process.alive and not task.greenlet.dead]:
                times = [max(task.wakes_at, task.process.paused_until) for task in living]
                self.now = max(self.now, min(times))
                ready = [task for task, time in zip(living, times, strict=True) if time <= self.now]
                self.random.choice(ready).greenlet.switch()
            for task in self.tasks:
                if not task.greenlet.dead:
                    task.greenlet.throw(GreenletExit)
        self.tasks.clear()

    @property
    def current(self) -> Task | None:
        """The task that runs; None in code that is no task's, such as threads that read rows files."""
        return next((task for task in self.tasks if task.greenlet is getcurrent()), None)

    def step(self) -> None:
        self.sleep(STEP_S)

    def sleep(self, seconds: float) -> None:
        """Let others have their turn."""
        if (task := self.current) is None:
            return
        if not task.process.alive:
            raise GreenletExit
        task.wakes_at = self.now + seconds
        self.hub.switch()
        if task.is_main and task.process.interrupted:
            task.process.interrupted = False
            raise KeyboardInterrupt

    def wait(self, done: Callable[[], bool]) -> None:
        while not done():
            self.sleep(0.5)

    def change(self, apply: Callable[[], None]) -> None:
        """Do a change of the storage, unless the process dies before it."""
        task = self.current
        if task is None:
            apply()
            return
        self.step()
        process = task.process
        if process.pause_at is not None:
            left, seconds = process.pause_at
            process.pause_at = (left - 1, seconds) if left else None
            if not left:
                process.paused_until = self.now + seconds
                self.step()
        if process.changes_left == 0:
            if self.random.random() < 0.5:
                apply()
            self.kill(process)
            raise GreenletExit
        if process.changes_left is not None:
            process.changes_left -= 1
        apply()

    def kill(self, process: Process) -> None:
        process.alive = False
        if process.companion is not None:
            process.companion.changes_left = process.outlives

    @contextlib.contextmanager
    def instead_of_the_real_one(self) -> Iterator[None]:
        """Give the lease this world's clock and threads."""
        threads = SimpleNamespace(Event=lambda: Event(self), Thread=lambda target, daemon: Thread(self, target))
        clock = SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.now)
        interrupts = SimpleNamespace(interrupt_main=self.interrupt_main)
        with patch.multiple(lease, time=clock, threading=threads, _thread=interrupts):
            yield

    def interrupt_main(self) -> None:
        assert self.current is not None
        self.current.process.interrupted = True


class Event:
    """In place of `threading.Event`."""

    def __init__(self, world: World) -> None:
        self.world, self.is_set = world, False

    def set(self) -> None:
        self.is_set = True

    def wait(self, timeout: float) -> bool:
        deadline = self.world.now + timeout
        while not self.is_set and self.world.now < deadline:
            self.world.sleep(min(0.5, deadline - self.world.now))
        return self.is_set


class Thread:
    """In place of `threading.Thread`."""

    def __init__(self, world: World, target: Callable[[], None]) -> None:
        self.world, self.target = world, target

    def start(self) -> None:
        assert self.world.current is not None
        self.task = self.world.spawn(self.world.current.process, self.target, is_main=False)

    def join(self) -> None:
        self.world.wait(lambda: bool(self.task.greenlet.dead))
