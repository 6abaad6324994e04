"""The job as README submits it: to a cluster of three nodes with a token, through the job API, from a folder."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.test_killed import committed
from tests.support.corpora import sample_images, shards_of, tar_bytes
from tests.support.jobs import ROOT, OutputReader, annotate, tiny_flags
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.ray_processes import RAY, Head, ray_head, ray_worker
from tests.support.s3_server import BUCKET, s3_client

pytestmark = pytest.mark.long
IMAGES, PER_SHARD = 160, 8
LARGEST_UPLOAD = 25_000_000
CORPUS = f"s3://{BUCKET}/submitted/shards"


@pytest.fixture(scope="module")
def corpus(s3: dict[str, str]) -> str:
    client = s3_client(s3)
    for number, members in enumerate(shards_of(sample_images(IMAGES), PER_SHARD)):
        client.pipe_file(f"{CORPUS.removeprefix('s3://')}/{number:05}.tar", tar_bytes(members))
    return CORPUS


@pytest.fixture(scope="module")
def cluster(s3: dict[str, str]) -> Iterator[Head]:
    """A head that takes no tasks and two workers; only they and the head know the bucket's key."""
    with ExitStack() as stack:
        head = stack.enter_context(ray_head("--num-cpus=0", env=s3))
        for _ in range(2):
            stack.enter_context(ray_worker(head, "--num-cpus=3", env=s3))
        yield head


def job(head: Head, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``ray job``, as somebody with the token runs it who has no key to the bucket."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | head.env
    command = [RAY, "job", verb, "--address", head.dashboard, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S)


def submit(head: Head, submission_id: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    runtime_env = json.dumps({"env_vars": {"HF_HUB_OFFLINE": "1"}})  # must get along with what the job itself sets
    flags = ["--working-dir", ".", "--runtime-env-json", runtime_env, "--submission-id", submission_id]
    return job(head, "submit", *flags, *arguments)


def test_without_the_token_nothing_is_taken(cluster: Head) -> None:
    stranger = Head(
        cluster.address, cluster.dashboard, cluster.folder, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "no"}
    )
    refused = job(stranger, "submit", "--", "true")
    assert refused.returncode != 0
    assert "oken" in refused.stdout + refused.stderr


def test_stopped_and_submitted_again_it_ends_complete_and_exact(
    cluster: Head, corpus: str, s3: dict[str, str], tmp_path: Path, tiny_clip: Path, tiny_diffusion: Path
) -> None:
    flags = tiny_flags(tmp_path, tiny_clip, tiny_diffusion)
    expected = annotate(corpus, f"s3://{BUCKET}/submitted/expected", *flags, env=s3)
    assert expected.returncode == 0, expected.stderr

    output = f"s3://{BUCKET}/submitted/labels"
    entrypoint = ["python", "jobs/annotate.py", "--input", corpus, "--output", output, *flags]
    entrypoint += ["--rows-per-file", "4", "--batch-size", "2", "--actors", "2"]
    reader = OutputReader(output, s3)
    begun = submit(cluster, "first", "--no-wait", "--", *entrypoint)
    assert begun.returncode == 0, begun.stderr
    wait_until(lambda: committed(reader))
    stopped = job(cluster, "stop", "first")
    assert stopped.returncode == 0, stopped.stderr
    assert "was stopped" in job(cluster, "status", "first").stdout
    assert "_SUCCESS" not in reader.names(), "the job was done before it was stopped: give it more to do"
    assert "Labelling actors: 2 on the CPU" in job(cluster, "logs", "first").stdout

    again = submit(cluster, "second", "--", *entrypoint)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Continuing:" in again.stdout, "the log is followed"
    assert "images are labelled already" in job(cluster, "logs", "second").stdout
    assert reader.rows() == OutputReader(f"s3://{BUCKET}/submitted/expected", s3).rows()
    assert len(reader.rows()) == IMAGES
    assert "_SUCCESS" in reader.names()


def test_the_upload_is_small_and_what_runs(cluster: Head) -> None:
    where = submit(cluster, "where", "--", "python", "-P", "-c", "import cluster; print(cluster.__file__)")
    (folder,) = {Path(line).parents[1] for line in where.stdout.splitlines() if line.endswith("cluster/__init__.py")}
    assert folder.is_relative_to(cluster.folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"jobs/annotate.py", "examples/vocab.txt", "jobs/common/speeds.csv"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "benchmarks/", "tests/"))]
    assert sum((folder / name).stat().st_size for name in names) < LARGEST_UPLOAD
