"""One run at a time per output."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.output import lease
from cluster.output.folder import LEASE, Output
from cluster.output.lease import Lease, exclusive_run
from cluster.storage import open_location
from schemas.errors import JobFailedError, RequestError
from schemas.manifest import Manifest
from tests.support.patience import wait_until

CONSOLE = Console(quiet=True)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(open_location(str(tmp_path / "out"), "--output"))


def left_behind(output: Output, **changes: Any) -> None:
    content = {"run": "another", "host": "elsewhere", "pid": 1, "renewals": 7} | changes
    output.write(LEASE, json.dumps(content).encode())


def test_a_lease_is_held_renewed_and_given_back(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    with Lease(output, CONSOLE):
        first = output.read_json(LEASE)
        assert first is not None
        assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())
        wait_until(lambda: (output.read_json(LEASE) or {}).get("renewals", 0) >= first["renewals"] + 3)
    assert output.read_json(LEASE) is None


def test_a_second_run_is_refused_while_the_first_lives(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with Lease(output, CONSOLE):
        with pytest.raises(RequestError, match=r"is being written to by another run, on .* \(process \d+\)"):
            Lease(output, CONSOLE, expires_s=20).__enter__()
        assert output.read_json(LEASE) is not None, "the refused run must not take the lease along"


def test_a_lease_that_no_longer_changes_is_taken_over(output: Output) -> None:
    left_behind(output)
    started = time.monotonic()
    with Lease(output, CONSOLE, expires_s=1.0) as ours:
        assert time.monotonic() - started >= 1.0
        assert ours.is_ours(ours.read() or {})


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(output: Output) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_behind(output, host=socket.gethostname(), pid=dead.pid)
    with Lease(output, CONSOLE, expires_s=3600) as ours:
        assert ours.is_ours(ours.read() or {})


def test_half_a_lease_is_none(output: Output) -> None:
    output.write(LEASE, b'{"run": "ano')
    with Lease(output, CONSOLE, expires_s=0.5) as ours:
        assert ours.is_ours(ours.read() or {})


def test_of_two_that_start_together_one_goes_on(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    taken: list[Lease] = []
    refused: list[RequestError] = []

    def run() -> None:
        try:
            taken.append(Lease(output, CONSOLE).__enter__())
        except RequestError as error:
            refused.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 1)
    taken[0].__exit__(None, None, None)


def test_a_run_whose_lease_is_taken_stops(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)

    def run() -> None:
        with Lease(output, CONSOLE):
            left_behind(output)
            for _ in range(300):  # an interrupt from another thread waits for the end of a sleep
                time.sleep(0.1)

    with pytest.raises(JobFailedError, match="another run has taken over"):
        run()
    assert (output.read_json(LEASE) or {})["run"] == "another", "it stays theirs"


def test_a_run_whose_output_is_deleted_stops(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)

    def run() -> None:
        with Lease(output, CONSOLE):
            shutil.rmtree(output.location.path)
            for _ in range(300):  # see above
                time.sleep(0.1)

    with pytest.raises(JobFailedError, match=f"^--output {output.location.path} was deleted$"):
        run()


def test_a_forbidden_output_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match="/proc/nowhere cannot be used"):
        Lease(Output(open_location("/proc/nowhere", "--output")), CONSOLE).__enter__()


MANIFEST = Manifest({"labels": "somewhere"})


def test_a_run_holds_the_lease_writes_the_manifest_and_finishes(output: Output) -> None:
    with exclusive_run(output, MANIFEST, CONSOLE) as running:
        assert output.read_json(LEASE) is not None
        assert (output.read_json("manifest.json") or {})["fingerprint"] == MANIFEST.fingerprint
        running.write("_checkpoint/run/rows.parquet", b"")
        assert not output.is_finished()
        running.finish({})
    assert output.is_finished()
    assert output.read_json(LEASE) is None
    assert output.checkpoint_files() == []


def test_a_run_that_fails_leaves_an_unfinished_output_without_a_lease(output: Output) -> None:
    with pytest.raises(JobFailedError), exclusive_run(output, MANIFEST, CONSOLE):
        raise JobFailedError
    assert not output.is_finished()
    assert output.read_json(LEASE) is None
    with exclusive_run(output, MANIFEST, CONSOLE) as running:
        running.finish({})
    assert output.is_finished()


def test_a_finished_output_is_reopened_and_its_rows_count(output: Output) -> None:
    with exclusive_run(output, MANIFEST, CONSOLE):
        output.write("rows/run_000000-0.parquet", b"")
        output.write("_checkpoint/run/run_000000.parquet", b"")
        output.finish(output.rows_files())
    with exclusive_run(output, MANIFEST, CONSOLE) as running:
        assert not running.is_finished()
        running.recover()
        assert [Path(path).name for path in running.rows_files()] == ["run_000000-0.parquet"]


def test_a_request_that_lost_the_race_for_an_empty_folder_is_refused(output: Output) -> None:
    """Both requests found the folder empty. The second one takes the lease after the first has finished."""
    output.check(MANIFEST, overwrite=False)
    with exclusive_run(output, Manifest({"labels": "elsewhere"}), CONSOLE):
        pass
    with pytest.raises(RequestError, match="changed: labels"), exclusive_run(output, MANIFEST, CONSOLE):
        pytest.fail("the run began")
    assert output.read_json(LEASE) is None


def test_a_refusal_names_the_flag_that_the_output_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    copies = Output(open_location(str(tmp_path / "kept"), "--copy-to"), "", r"\d{6,}\.tar")
    refused = pytest.raises(RequestError, match=f"^--copy-to {tmp_path}/kept is being written to by another run")
    with exclusive_run(copies, MANIFEST, CONSOLE), refused:
        Lease(copies.with_retries(), CONSOLE, expires_s=20).__enter__()
