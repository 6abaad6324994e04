"""Clocks: of a run, of its stages, of threads as an actor has them; and processes of their own."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch.profiler import record_function

from cluster.sizing import CALLS_PER_GPU_ACTOR

Result = TypeVar("Result")
PREFIX = "cliper/"
"""Of the names that `cliper.pipeline.stage` gives."""


class StageClock:
    """Times every stage of a run once, where it begins and ends on the device.

    On a GPU, events in its stream mark these points. So what the GPU does for a stage counts in this stage, even if the
    host is ahead, and so does its waiting for the host. Stages that do not overlap add up to no more than the run.

    Args:
        device: where the stages run.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.spans: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen to the stages of what runs inside, in one thread."""
        begin, end = record_function.__enter__, record_function.__exit__
        began = []

        def enter(recorded: record_function) -> record_function:
            began.append(self.mark())
            return begin(recorded)

        def leave(recorded: record_function, *error: Any) -> None:
            end(recorded, *error)
            self.spans.append((recorded.name, began.pop(), self.mark()))

        with patch.object(record_function, "__enter__", enter), patch.object(record_function, "__exit__", leave):
            yield

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, after the device has finished."""
        found: dict[str, float] = defaultdict(float)
        for name, began, ended in self.spans:
            if name.startswith(PREFIX):
                took = began.elapsed_time(ended) / 1e3 if self.on_gpu else ended - began
                found[name.removeprefix(PREFIX)] += took
        return dict(found)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a run until the device has finished."""
    finish(device)
    started = time.perf_counter()
    run()
    finish(device)
    return time.perf_counter() - started


def timed_stages(run: Callable[[], Any], device: torch.device) -> tuple[float, dict[str, float]]:
    """Seconds of a run and of each of its stages. What lies between them is the stage ``between``."""
    clock = StageClock(device)
    with clock.running():
        seconds = timed(run, device)
    stages = clock.seconds()
    return seconds, stages | {"between": max(0.0, seconds - sum(stages.values()))}


def seconds_in_threads(work: Callable[[], Any], times: int, device: torch.device) -> float:
    """Seconds for each time that as many threads as an actor on a GPU has do some work together."""
    with ThreadPoolExecutor(CALLS_PER_GPU_ACTOR) as threads:
        return timed(lambda: list(threads.map(lambda _: work(), range(times))), device) / times


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def apart(function: Callable[..., Result], *arguments: Any, timeout_s: float | None = None) -> Result:
    """What a function returns in a process of its own, with memory of its own.

    Raises:
        TimeoutError: it took longer; the process is ended.
        Exception: what the function raises.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(function, *arguments).result(timeout_s)
        except TimeoutError:
            for child in active_children():
                child.kill()
            raise
