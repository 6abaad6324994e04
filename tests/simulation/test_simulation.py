"""Nothing is lost and nothing doubled in any history, and the simulation finds what would lose it."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from cluster.output import resume
from cluster.output.folder import Output
from cluster.output.lease import EXPIRES_S
from tests.simulation.machine import Histories, write_rows_then_commit

HISTORIES = 30
QUICK = settings(max_examples=300, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))


def test_nothing_is_lost_or_doubled() -> None:
    run_state_machine_as_test(Histories, settings=QUICK)  # type: ignore[no-untyped-call]


def skip_the_sync(history: Histories, run: str, name: str, rows: bytes) -> None:
    write_rows_then_commit(history, run, name, rows)
    history.store.unsynced.add(f"/out/rows/{name}-0.parquet")


def commit_before_rows(history: Histories, run: str, name: str, rows: bytes) -> None:
    history.put(f"_checkpoint/{run}/{name}.parquet", b"")
    history.put(f"rows/{name}-0.parquet", b"")
    history.put(f"rows/{name}-0.parquet", rows)


def count_all_files(output: Output) -> dict[str, int]:
    """In place of `Output.rows_files`: what appears in a finished output counts."""
    return output.data_files() if output.finished_files() is not None else ROWS_FILES(output)


ROWS_FILES = Output.rows_files


def power_failure(history: Histories, draw: random.Random) -> None:
    history.run_that_dies(after=draw.randint(0, 30), outlives=draw.randint(0, 5))
    history.power_fails()


def bad_connection(history: Histories, draw: random.Random) -> None:
    """A reader comes before the next run has cleared up."""
    history.run_over_a_bad_connection(draw.uniform(0.02, 0.1))
    history.run_with_a_reader(3)


def replaced_shard(history: Histories, draw: random.Random) -> None:
    history.shard_replaced_in_flight(SHARDS[0], 2, draw.uniform(0, 60))


def overtaken_run(history: Histories, draw: random.Random) -> None:
    """The driver stands still while it labels, and its workers go on."""
    history.two_runs((3, 3 * EXPIRES_S), None, None, draw.uniform(0.5, 2), None)


def workers_that_wake_up(history: Histories, draw: random.Random) -> None:
    """Their driver is dead, and another run has finished the output."""
    history.two_runs(None, None, (draw.randint(0, 3), 10 * EXPIRES_S), draw.uniform(0.5, 2), 3)


SHARDS = [f"{letter}.tar" for letter in "abcdef"]
BUGS: dict[str, tuple[Any, str, Callable[..., Any], Callable[[Histories, random.Random], None]]] = {
    "rows are not synced": (Histories, "write", staticmethod(skip_the_sync), power_failure),
    "commit before rows": (Histories, "write", staticmethod(commit_before_rows), bad_connection),
    "rows of older versions stay": (resume, "read_versions", lambda _: {}, replaced_shard),
    "late files of a finished output count": (Output, "rows_files", count_all_files, workers_that_wake_up),
    "repeated rows stay": (
        resume, "first_rows", lambda image_ids, seen: [True] * len(image_ids), overtaken_run,
    ),
}  # fmt: skip
"""What is replaced, by what, and a history in which that may lose or double rows."""


def play(events: Callable[[Histories, random.Random], None], seed: int) -> None:
    history, draw = Histories(), random.Random(seed)
    history.begin(seed, late=0.0)
    for name in SHARDS:
        history.put_shard(name, images=3)
    events(history, draw)
    history.teardown()


def harmful(events: Callable[[Histories, random.Random], None]) -> int:
    """Histories that lose or double rows."""
    found = 0
    for seed in range(HISTORIES):
        try:
            play(events, seed)
        except (AssertionError, ExceptionGroup):
            found += 1
    return found


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *replaced, events = BUGS[bug]
    assert harmful(events) == 0
    monkeypatch.setattr(*replaced)
    assert harmful(events) > 0
