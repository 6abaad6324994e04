"""Kept images as new tar shards: every byte, resumed after a kill."""

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from jobs.filter import main
from tests.end_to_end.conftest import IMAGES, PER_SHARD, FinishedRun
from tests.support.corpora import sample_images, write_tars
from tests.support.jobs import ROOT, OutputReader
from tests.support.patience import wait_until
from tests.support.s3_server import BUCKET

PER_NEW_SHARD = 5


def flags(labels: str, target: str, where: str) -> list[str]:
    """The job's flags; it copies."""
    sizes = ["--pictures-per-shard", str(PER_NEW_SHARD), "--copy-labels", "none"]
    return ["--labels", labels, "--copy-to", target, *sizes, "--where", where]


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


def test_every_byte_of_the_kept_images_arrives(finished_run: FinishedRun) -> None:
    target, env = f"s3://{BUCKET}/kept", finished_run.ray.env
    request = flags(finished_run.output, target, "width > height")
    done = finished_run.ray.run(main, *request)
    assert done.returncode == 0, done.stderr
    rows = finished_run.reader().rows()
    wide = {image_id for image_id, row in rows.items() if row["width"] > row["height"]}
    assert 0 < len(wide) < len(rows)
    images = sample_images(IMAGES)
    expected = sorted(images[image_id.rpartition("/")[2]] for image_id in wide)
    members = copied(target, env)
    assert sorted(members.values()) == expected
    assert all(name.endswith(".jpg") for name in members)
    assert "_SUCCESS" in OutputReader(target, env).names()

    again = finished_run.ray.run(main, *request)
    assert again.returncode == 0, again.stderr
    assert "Already copied" in again.stdout
    other = finished_run.ray.run(main, *flags(finished_run.output, target, "width < height"))
    assert other.returncode == 2
    assert f"--copy-to {target} was begun with another request (changed: conditions.where" in other.stderr


@pytest.mark.long
def test_a_killed_copy_goes_on_and_writes_no_shard_again(finished_run: FinishedRun, tmp_path: Path) -> None:
    images = sample_images(600)
    corpus, labels, target = str(write_tars(tmp_path / "in", images, PER_SHARD)), tmp_path / "labels", tmp_path / "kept"
    no_diffusion = ["--diffusion", "none", "--compensation", "none"]
    labelled = finished_run.ray.annotate(corpus, str(labels), *finished_run.flags, *no_diffusion)
    assert labelled.returncode == 0, labelled.stderr
    request = flags(str(labels), str(target), "true")
    job = subprocess.Popen(
        [sys.executable, "jobs/filter.py", *request], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: list(target.glob("*.tar")), job, 0.01)
    job.kill()
    job.wait()
    assert not (target / "_SUCCESS").exists(), "the job was done before it was killed"
    time.sleep(5)  # its tasks end
    before = {path.name: path.stat().st_mtime_ns for path in target.glob("*.tar")}
    again = finished_run.ray.run(main, *request)
    assert again.returncode == 0, again.stderr
    assert {name: (target / name).stat().st_mtime_ns for name in before} == before
    assert sorted(copied(str(target), {}).values()) == sorted(images.values())
    assert not list(target.glob("*.part*"))
