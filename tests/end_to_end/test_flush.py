"""Rows are written in time, and an interrupted job says how many."""

import copy
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.output.flush import RowsOrSeconds
from tests.end_to_end.conftest import FinishedRun
from tests.support.corpora import sample_images, write_tars
from tests.support.jobs import ROOT, OutputReader
from tests.support.patience import PATIENCE_S, wait_until

SOON = "0.0001"
"""Minutes."""


def reached(rows: int, limit: RowsOrSeconds) -> bool:
    """As Ray Data asks it."""
    return rows >= limit


def test_a_number_of_rows_is_reached_by_rows_or_by_time() -> None:
    limit = RowsOrSeconds(10, 3600)
    assert [reached(rows, limit) for rows in (0, 9, 10, 11)] == [False, False, True, True]
    hasty = RowsOrSeconds(10, 0.05)
    for copied in (hasty, copy.deepcopy(hasty), pickle.loads(pickle.dumps(hasty))):  # as Ray Data does
        assert not reached(1, copied)
        time.sleep(0.06)
        assert reached(2, copied)
        assert not reached(1, copied), "the time begins again with the next file"


def test_few_rows_are_written_when_they_are_old(finished_run: FinishedRun, tmp_path: Path) -> None:
    corpus = str(write_tars(tmp_path / "in", sample_images(24), 8))
    flags = [*finished_run.flags, "--diffusion", "none", "--compensation", "none", "--batch-size", "2"]
    for name, more, many in (("late", [], False), ("soon", ["--flush-minutes", SOON], True)):
        run = finished_run.ray.annotate(corpus, str(tmp_path / name), *flags, *more)
        assert run.returncode == 0, run.stderr
        reader = OutputReader(str(tmp_path / name), {})
        assert len(reader.rows()) == 24
        assert (len(reader.tables()) > 3) == many
    assert OutputReader(str(tmp_path / "late"), {}).rows() == reader.rows()


@pytest.mark.long
def test_an_interrupted_job_says_how_many_images_are_saved(finished_run: FinishedRun, tmp_path: Path) -> None:
    corpus, output = write_tars(tmp_path / "in", sample_images(2000), 50), tmp_path / "out"
    flags = [*finished_run.flags, "--diffusion", "none", "--compensation", "none", "--rows-per-file", "20"]
    job = subprocess.Popen(
        [sys.executable, "jobs/annotate.py", "--input", str(corpus), "--output", str(output), *flags], cwd=ROOT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=finished_run.ray.env,
    )  # fmt: skip
    wait_until(lambda: len([*output.glob("_checkpoint/*/*-0.parquet"), *output.glob("rows/*.parquet")]) >= 4, job)
    job.send_signal(signal.SIGINT)
    stdout, stderr = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 130, stderr
    assert stderr == "interrupted. What is written stays. The same command continues from there.\n"
    said = re.search(r"^([\d,]+) images are saved\.$", stdout, re.MULTILINE)
    assert said is not None, stdout
    saved = int(said[1].replace(",", ""))
    assert 20 <= saved < 2000
    again = finished_run.ray.annotate(str(corpus), str(output), *flags)
    assert again.returncode == 0, again.stderr
    continued = re.search(r"Continuing: ([\d,]+) images", again.stdout)
    assert continued is not None
    assert int(continued[1].replace(",", "")) >= saved
