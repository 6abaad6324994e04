"""Every end of a job is one sentence and an exit code."""

import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayError

from jobs.common.exit_codes import job_problem
from tests.support.jobs import ROOT


def test_an_impatient_user_sees_no_traceback() -> None:
    """Ctrl-C, and again while the job cleans up and Python ends."""
    script = """
        import atexit, time
        from dataclasses import dataclass
        from jobs.common.exit_codes import run_job

        @dataclass
        class Options:
            basic = ()

        def job(options, console):
            print("working", flush=True)
            time.sleep(60)

        def slow_end():
            print("ending", flush=True)
            time.sleep(60)

        atexit.register(slow_end)
        raise SystemExit(run_job(Options, job, "", []))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    for said in ("working\n", "ending\n"):
        assert process.stdout.readline() == said
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert errors == "interrupted. What is written stays. The same command continues from there.\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OutOfMemoryError(
                "Task was killed due to the node running low on memory.\n"
                "Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/x.\n"
                "To change retry attempts set max_retries. Set RAY_memory_usage_threshold=1 to adjust."
            ),
            "OutOfMemoryError: Task was killed due to the node running low on memory.",
        ),
        (RayError("a\nthe cause\n\n"), "RayError: the cause"),
        (RayError(""), "RayError: no message"),
    ],
)
def test_the_cause_is_told_without_advice(error: RayError, sentence: str) -> None:
    assert job_problem(error) == sentence


@pytest.mark.usefixtures("ray_here")
def test_the_cause_in_a_worker_is_told() -> None:
    def fail(batch: dict[str, Any]) -> dict[str, Any]:
        raise TypeError("there is nothing to add")

    with pytest.raises(RayError) as error:
        ray.data.range(1).map_batches(fail).materialize()
    assert job_problem(error.value) == "TypeError: there is nothing to add"
