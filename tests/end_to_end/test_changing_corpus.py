"""Corpora that grow and change between runs, and under a job that follows them."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.corpora import jpeg, tar_bytes
from tests.support.jobs import ROOT, OutputReader, SharedRay, command, tiny_flags
from tests.support.patience import wait_until
from tests.support.s3_server import BUCKET, s3_client

Rows = dict[str, dict[str, Any]]


def shard(*seeds: int) -> bytes:
    return tar_bytes({f"{seed}.jpg": jpeg(seed) for seed in seeds})


def test_only_what_changed_is_labelled_again(tmp_path: Path, tiny_clip: Path, ray_here: SharedRay) -> None:
    corpus, out = tmp_path / "in", str(tmp_path / "out")
    corpus.mkdir()
    for number in range(4):
        (corpus / f"{number}.tar").write_bytes(shard(10 * number, 10 * number + 1))
    (corpus / "3.tar").write_bytes(shard(30, 31)[:3000])
    flags = [*tiny_flags(tmp_path, tiny_clip, "none"), "--max-failed-fraction", "0.5"]
    assert ray_here.annotate(str(corpus), out, *flags).returncode == 0
    first = OutputReader(out, {}).rows()
    assert first["3.tar"]["status"] == "broken_shard"
    again = ray_here.annotate(str(corpus), out, *flags)
    assert "Already finished: nothing to do" in again.stdout
    (corpus / "0.tar").unlink()
    (corpus / "1.tar").write_bytes(shard(10, 12, 13))
    (corpus / "3.tar").write_bytes(shard(30, 31))
    (corpus / "4.tar").write_bytes(shard(40))
    run = ray_here.annotate(str(corpus), out, *flags)
    assert run.returncode == 0, run.stderr
    assert "Since the last run: 1 new shard, 2 changed, 1 no longer there." in run.stdout
    rows = OutputReader(out, {}).rows()
    fresh = ray_here.annotate(str(corpus), str(tmp_path / "fresh"), *flags)
    assert fresh.returncode == 0
    lost = {image_id: row for image_id, row in first.items() if image_id.startswith("0.tar/")}
    assert rows == OutputReader(str(tmp_path / "fresh"), {}).rows() | lost
    assert OutputReader(out, {}).json("summary.json")["new_images"] == 6
    assert "Already finished: nothing to do" in ray_here.annotate(str(corpus), out, *flags).stdout
    (tmp_path / "out/summary.json").write_text("{")
    damaged = ray_here.annotate(str(corpus), out, *flags)
    assert damaged.returncode == 0
    assert "summary.json is missing or damaged" in damaged.stdout


@pytest.mark.long
def test_a_bucket_that_grows_while_the_job_follows_it(
    tmp_path: Path, tiny_clip: Path, ray_here: SharedRay, s3: dict[str, str]
) -> None:
    """Ten batches of shards, one of them replaced and one deleted."""
    bucket = s3_client(s3)
    corpus, out = f"s3://{BUCKET}/growing", f"s3://{BUCKET}/followed"
    reader = OutputReader(out, s3)
    flags = tiny_flags(tmp_path, tiny_clip, "none")

    def put(name: str, content: bytes) -> None:
        bucket.pipe_file(f"{BUCKET}/growing/{name}.tar", content)

    put("0", shard(0, 1))
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            command(corpus, out, *flags, "--follow", "1"), cwd=ROOT, env=os.environ | s3, stdout=log, stderr=log
        )
        try:
            for batch in range(1, 10):
                put(f"{batch}", shard(10 * batch, 10 * batch + 1))
                put(f"{batch}-b", shard(10 * batch + 2))
                if batch == 5:
                    wait_until(lambda: "2.tar/21.jpg" in labelled(reader))
                    put("2", shard(20, 99))
                if batch == 7:
                    wait_until(lambda: "3.tar/31.jpg" in labelled(reader))
                    bucket.rm_file(f"{BUCKET}/growing/3.tar")
                time.sleep(1)
            wait_until(lambda: {"9-b.tar/92.jpg", "2.tar/99.jpg"} <= labelled(reader).keys() and finished(reader))
        finally:
            job.send_signal(signal.SIGINT)
            code = job.wait(60)
    assert code == 130, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    rows = reader.rows()
    fresh = ray_here.annotate(corpus, f"s3://{BUCKET}/fresh", *flags, **s3)
    assert fresh.returncode == 0, fresh.stderr
    deleted = {image_id: row for image_id, row in rows.items() if image_id.startswith("3.tar/")}
    assert len(deleted) == 2
    assert rows == OutputReader(f"s3://{BUCKET}/fresh", s3).rows() | deleted


def labelled(reader: OutputReader) -> Rows:
    """The rows so far; none while the files change under the reader."""
    try:
        return reader.rows()
    except OSError:
        return {}


def finished(reader: OutputReader) -> bool:
    return bool(reader.fs.exists(f"{reader.path}/_SUCCESS"))
