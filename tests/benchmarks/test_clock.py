"""Every stretch of a stage counts once, on the host's clock and on a GPU's."""

import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest
import torch

from benchmarks import clock
from benchmarks.clock import apart, timed_stages
from cliper.pipeline import stage


class Ticks:
    """Stands in for `torch.cuda.Event`: the n-th one to be recorded is recorded at n milliseconds."""

    numbers: Iterator[int] = iter(())

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.number = next(Ticks.numbers)

    def elapsed_time(self, end: "Ticks") -> float:
        return end.number - self.number


def two_stages() -> None:
    for name in ("one", "one", "two"):
        with stage(name), torch.profiler.record_function("within"):
            pass


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Clocks of which each look takes so many seconds on the host and a millisecond on the device."""

    def set_ticks(host_s: float) -> None:
        seconds = count()
        monkeypatch.setattr(clock.time, "perf_counter", lambda: next(seconds) * host_s)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "Event", Ticks)
        Ticks.numbers = count()

    return set_ticks


def test_stages_and_what_lies_between_add_up_to_the_run(ticks: Callable[[float], None]) -> None:
    ticks(1.0)
    total, stages = timed_stages(two_stages, torch.device("cpu"))
    assert stages == {"one": 2 * 3, "two": 3, "between": total - 9}
    assert total == 13, "each of the six marks and the end is one look"


def test_on_a_gpu_events_count_once(ticks: Callable[[float], None]) -> None:
    ticks(0.1)
    total, stages = timed_stages(two_stages, torch.device("cuda"))
    assert stages == pytest.approx({"one": 0.006, "two": 0.003, "between": total - 0.009})


def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError):
        apart(time.sleep, 600, timeout_s=0.1)
