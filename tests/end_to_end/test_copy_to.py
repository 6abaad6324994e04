"""Kept pictures as new tar shards: every byte, resumed after a kill."""

import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import PER_SHARD, PICTURES, FinishedRun
from tests.end_to_end.runs import ROOT, OutputReader, annotate
from tests.support.corpora import pictures, write_tars
from tests.support.s3_server import BUCKET

PER_NEW_SHARD = 5


def command(labels: str, target: str, *flags: str) -> list[str]:
    sizes = ["--pictures-per-shard", str(PER_NEW_SHARD)]
    return [sys.executable, "jobs/filter.py", "--labels", labels, "--copy-to", target, *sizes, *flags]


def copied(target: str, env: dict[str, str]) -> dict[str, bytes]:
    """Member name to bytes over all new shards; fails on a doubled name or a shard that is too large."""
    files = OutputReader(target, env).files()
    members: dict[str, bytes] = {}
    for name in sorted(name for name in files if name.endswith(".tar")):
        with tarfile.open(fileobj=io.BytesIO(files[name])) as archive:
            found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        assert 0 < len(found) <= PER_NEW_SHARD
        assert not found.keys() & members.keys()
        members |= found
    return members


def run(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=200)


def test_every_byte_of_the_kept_pictures_arrives(finished_run: FinishedRun) -> None:
    target = f"s3://{BUCKET}/kept"
    arguments = command(finished_run.output, target, "--where", "width > height")
    done = run(arguments, finished_run.env)
    assert done.returncode == 0, done.stderr
    rows = finished_run.reader().rows()
    wide = {image_id for image_id, row in rows.items() if row["width"] > row["height"]}
    assert 0 < len(wide) < len(rows)
    images = pictures(PICTURES)
    expected = sorted(images[image_id.rpartition("/")[2]] for image_id in wide)
    members = copied(target, finished_run.env)
    assert sorted(members.values()) == expected
    assert all(name.endswith(".jpg") for name in members)
    assert "_SUCCESS" in OutputReader(target, finished_run.env).names()

    again = run(arguments, finished_run.env)
    assert again.returncode == 0, again.stderr
    assert "Already copied" in again.stdout
    other = run(command(finished_run.output, target, "--where", "width < height"), finished_run.env)
    assert other.returncode == 2
    assert "begun with other conditions" in other.stderr


@pytest.mark.long
def test_a_killed_copy_goes_on_and_writes_no_shard_again(finished_run: FinishedRun, tmp_path: Path) -> None:
    images = pictures(600)
    corpus, labels, target = str(write_tars(tmp_path / "in", images, PER_SHARD)), tmp_path / "labels", tmp_path / "kept"
    flags = [*finished_run.flags, "--diffusion", "none", "--compensation", "none"]
    labelled = annotate(corpus, str(labels), *flags, env={})
    assert labelled.returncode == 0, labelled.stderr
    arguments = command(str(labels), str(target), "--where", "true")
    job = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(target.glob("*.tar")):
        assert job.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert not (target / "_SUCCESS").exists(), "the job was done before it was killed"
    time.sleep(5)  # its tasks end
    before = {path.name: path.stat().st_mtime_ns for path in target.glob("*.tar")}
    again = run(arguments, {})
    assert again.returncode == 0, again.stderr
    assert {name: (target / name).stat().st_mtime_ns for name in before} == before
    assert sorted(copied(str(target), {}).values()) == sorted(images.values())
    assert not list(target.glob("*.part*"))
