"""Nothing is lost and nothing doubled in any history, and the simulation finds what would lose it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cluster.output import resume
from cluster.output.folder import Output
from tests.simulation.machine import Histories, write_rows_then_commit

QUICK = settings(max_examples=500, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))


def test_nothing_is_lost_or_doubled() -> None:
    run_state_machine_as_test(Histories, settings=QUICK)  # type: ignore[no-untyped-call]


def skip_the_sync(history: Histories, run: str, name: str, rows: bytes) -> None:
    write_rows_then_commit(history, run, name, rows)
    history.store.unsynced.add(f"/out/{name}-0.parquet")


def commit_before_rows(history: Histories, run: str, name: str, rows: bytes) -> None:
    history.put(f"_checkpoint/{run}/{name}.parquet", b"")
    history.put(f"{name}-0.parquet", b"")
    history.put(f"{name}-0.parquet", rows)


def count_all_files(output: Output) -> dict[str, int]:
    """In place of `Output.rows_files`: what appears in a finished output counts."""
    return output.data_files() if output.finished_files() is not None else ROWS_FILES(output)


ROWS_FILES = Output.rows_files

BUGS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "rows are not synced": (Histories, "write", staticmethod(skip_the_sync)),
    "commit before rows": (Histories, "write", staticmethod(commit_before_rows)),
    "rows of older versions stay": (resume, "read_versions", lambda _: {}),
    "late files of a finished output count": (Output, "rows_files", count_all_files),
    "repeated rows stay": (resume, "first_rows", lambda image_ids, seen: [True] * len(image_ids)),
}


FOUND_AT_ONCE = {"rows are not synced", "rows of older versions stay"}


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[] if bug in FOUND_AT_ONCE else pytest.mark.long) for bug in BUGS]
)
def test_planted_bugs_are_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BUGS[bug])
    until_found = settings(QUICK, max_examples=5000, phases=[Phase.generate], derandomize=True, database=None)
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(Histories, settings=until_found)  # type: ignore[no-untyped-call]
