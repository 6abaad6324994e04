"""The driver dies without warning; the same command takes the job up again."""

import os
import signal
import subprocess

import pytest

from tests.end_to_end.conftest import FinishedRun
from tests.support.jobs import ROOT, OutputReader, annotate, command
from tests.support.patience import wait_until
from tests.support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY


def committed(output: OutputReader) -> set[str]:
    """The names of the committed checkpoints."""
    return {name for name in output.names() if "_checkpoint/" in name and ".pending." not in name}


@pytest.mark.long
def test_killed_midway_and_run_again(finished_run: FinishedRun) -> None:
    output = f"s3://{BUCKET}/killed"
    flags = [*finished_run.flags, "--rows-per-file", "4", "--batch-size", "2"]
    driver = subprocess.Popen(
        command(finished_run.corpus, output, *flags),
        cwd=ROOT,
        env=os.environ | finished_run.ray.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    reader = OutputReader(output, finished_run.ray.env)
    names = wait_until(lambda: committed(reader), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert "_SUCCESS" not in reader.files(), "the job was done before it was killed: give it more to do"

    again = annotate(finished_run.corpus, output, *flags, env=finished_run.ray.env)
    assert again.returncode == 0, again.stderr
    assert "Continuing:" in again.stdout
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert secret not in again.stdout + again.stderr
        assert not any(secret.encode() in data for data in reader.files().values())
    assert reader.rows() == finished_run.reader().rows()
    kept = {name.removesuffix(".parquet").rpartition("/")[2] for name in names}
    rows_files = [name for name in reader.files() if name.startswith("rows/")]
    assert all(any(name.startswith(f"rows/{stem}-") for name in rows_files) for stem in kept), (
        "committed rows were redone"
    )
