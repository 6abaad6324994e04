"""Nothing is lost and nothing doubled in any history, and the simulation finds what would lose it."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cluster.output import changes
from cluster.output.folder import Output
from cluster.output.resume import keep_rows
from cluster.output.rows import map_rows_files
from tests.simulation.machine import Histories

QUICK = settings(max_examples=500, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))


def test_nothing_is_lost_or_doubled() -> None:
    run_state_machine_as_test(Histories, settings=QUICK)  # type: ignore[no-untyped-call]


def leave_what_is_not_committed(output: Output) -> None:
    """In place of `Output.recover`."""


def versions_first(output: Output, corpus: Any) -> None:
    """In place of `note_versions`: what has changed is noted before its rows are deleted."""
    noted, now = changes.read_versions(output), changes.versions_of(corpus)
    changes.write_versions(output, noted | now)
    changed = changes.compare(noted, now).changed
    for path, table in map_rows_files(output, ["shard"], lambda table: table, damaged=[]):
        keep_rows(output, path, pa.array([shard not in changed for shard in table["shard"].to_pylist()], pa.bool_()))


@pytest.mark.parametrize(
    ("where", "bug"),
    [
        ("cluster.output.folder.Output.recover", leave_what_is_not_committed),
        ("tests.simulation.machine.note_versions", versions_first),
    ],
    ids=["recovery skipped", "versions noted before rows are deleted"],
)
def test_planted_bugs_are_found(where: str, bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, bug)
    until_found = settings(QUICK, max_examples=5000, phases=[Phase.generate], derandomize=True, database=None)
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(Histories, settings=until_found)  # type: ignore[no-untyped-call]
