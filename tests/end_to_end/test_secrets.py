"""Whatever a run's fate: its keys are in no file, no log, no message and no command line that it leaves behind."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.conftest import FinishedRun
from tests.support.jobs import ROOT, OutputReader, broken_copy, command
from tests.support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY

pytestmark = pytest.mark.faults

SECRETS = (ACCESS_KEY, SECRET_KEY)


@pytest.fixture
def ray_logs() -> Iterator[Path]:
    """A folder of its own for Ray's logs; Ray's sockets lie there too, so its path must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        yield Path(folder)


def watched(arguments: list[str], env: dict[str, str], kill_on_rows: OutputReader | None = None) -> tuple[int, str]:
    """Run the job; returns its exit code and everything that it printed or that its processes show of themselves."""
    job = subprocess.Popen(
        arguments, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    shown = set()
    while job.poll() is None:
        for process in (psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)):
            try:
                shown.add(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        if kill_on_rows and any("_checkpoint/" in name for name in kill_on_rows.names()):
            job.send_signal(signal.SIGKILL)
        time.sleep(0.3)
    printed = job.communicate()[0]
    assert shown
    return job.returncode, "\n".join([printed, *shown])


@pytest.mark.parametrize(
    ("fate", "code"), [("done", 0), ("wrong request", 2), ("forbidden", 2), ("actors fail", 1), ("killed", -9)]
)
def test_no_secret_is_left_anywhere(
    fate: str, code: int, finished_run: FinishedRun, ray_logs: Path, tiny_diffusion: Path
) -> None:
    output = f"s3://{BUCKET}/secrets-{fate.replace(' ', '-')}"
    flags = [*finished_run.flags, "--rows-per-file", "4", "--batch-size", "2"]
    env = finished_run.ray.env | {"RAY_TMPDIR": str(ray_logs)}
    reader = OutputReader(output, finished_run.ray.env)
    corpus = finished_run.corpus
    match fate:
        case "wrong request":
            corpus = f"s3://{BUCKET}/nothing-here"
        case "forbidden":
            env |= {"AWS_SECRET_ACCESS_KEY": SECRET_KEY[::-1] + SECRET_KEY}
        case "actors fail":
            flags += ["--diffusion", str(broken_copy(tiny_diffusion, ray_logs / "diffusion"))]
    found, text = watched(command(corpus, output, *flags), env, reader if fate == "killed" else None)
    assert found == code, text
    left = list(ray_logs.rglob("*"))
    if fate in ("done", "actors fail", "killed"):
        assert any(path.suffix == ".log" for path in left), "Ray's logs are not where they are looked for"
    contents = [path.read_bytes() for path in left if path.is_file()] + list(reader.files().values())
    for secret in SECRETS:
        assert secret not in text
        assert not any(secret.encode() in content for content in contents)
