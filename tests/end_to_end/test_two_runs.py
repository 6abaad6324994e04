"""Two runs on one output: the second is refused, the first is not disturbed."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.conftest import FinishedRun
from tests.end_to_end.test_killed import committed
from tests.support.corpora import sample_images, write_tars
from tests.support.jobs import ROOT, OutputReader, annotate, command
from tests.support.patience import PATIENCE_S, wait_until

pytestmark = pytest.mark.faults

IMAGES = 600


def test_a_second_run_on_the_same_output_is_refused(finished_run: FinishedRun, tmp_path: Path) -> None:
    corpus, output = str(write_tars(tmp_path / "in", sample_images(IMAGES), per_shard=20)), str(tmp_path / "out")
    flags = [*finished_run.flags, "--rows-per-file", "4", "--batch-size", "2"]
    first = subprocess.Popen(
        command(corpus, output, *flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    reader = OutputReader(output, {})
    wait_until(lambda: committed(reader), first)
    second = annotate(corpus, output, *flags, "--overwrite", env=os.environ)
    assert first.poll() is None, "the first run was done before the second one came: give it more to do"
    assert second.returncode == 2, second.stdout + second.stderr
    assert f"--output {output} is being written to by another run" in second.stderr
    _, errors = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, errors
    assert len(reader.rows()) == IMAGES
    assert "_lease.json" not in reader.names()
