"""A run that was cut off late is finished with little reading."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.corpora import sample_images, write_tars
from tests.support.jobs import ROOT, OutputReader, annotate, command, tiny_flags
from tests.support.patience import wait_until

pytestmark = pytest.mark.faults

SHARDS, PER_SHARD, ROWS_PER_FILE = 200, 5, 10
IMAGES = SHARDS * PER_SHARD


def test_after_nine_tenths_of_the_shards(tmp_path: Path, tiny_clip: Path) -> None:
    images = sample_images(IMAGES)
    corpus, output = str(write_tars(tmp_path / "in", images, PER_SHARD)), tmp_path / "out"
    flags = [*tiny_flags(tmp_path, tiny_clip, "none"), "--rows-per-file", str(ROWS_PER_FILE), "--batch-size", "2"]
    driver = subprocess.Popen(
        command(corpus, str(output), *flags), cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: len(list(output.glob("rows/*.parquet"))) >= 0.9 * IMAGES / ROWS_PER_FILE, driver, 0.02)
    driver.kill()
    driver.wait()
    assert not (output / "_SUCCESS").exists(), "the job was done before it was killed: give it more to do"

    again = annotate(corpus, str(output), *flags, env={})
    assert again.returncode == 0, again.stderr
    reader = OutputReader(str(output), {})
    assert len(reader.rows()) == IMAGES
    share = reader.json("summary.json")["bytes_read"] / sum(map(len, images.values()))
    print(f"read again: {share:.1%} of the input")
    assert 0 < share <= 0.15
