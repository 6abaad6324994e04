"""Running jobs, each in a process of its own or all on one Ray in this process, and reading what they left."""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import pyarrow.parquet as pq
import ray
import s3fs
from ray.data import DataContext

import jobs.annotate
from cluster import session
from cluster.options import ClusterOptions
from tests.support.patience import PATIENCE_S
from tests.support.s3_server import s3_client

ROOT = Path(__file__).parents[2]
VOCABULARY = "thing\nother: some other thing; another one\nlast thing, with a comma\n"
MOST_ACTORS = 2
"""Actors of a job on the shared Ray, at most: each holds a CPU slot, and reading needs one, too."""
Main = Callable[[Sequence[str]], int]
Ended = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class SharedRay:
    """Ray in this process, for all tests that need no Ray of their own.

    Attributes:
        env: environment of its workers, and of this process while a job runs.
    """

    env: dict[str, str]

    def run(self, main: Main, *arguments: str, **env: str) -> Ended:
        """Run a job's main function here; returns its exit code and what it printed."""
        with DataContext.current(DataContext()):  # a job's settings end with it
            return run_here(main, arguments, self.env | env)

    def annotate(self, corpus: str, output: str, *flags: str, **env: str) -> Ended:
        return self.run(jobs.annotate.main, "--input", corpus, "--output", output, *flags, **env)


@contextmanager
def shared_ray(env: Mapping[str, str]) -> Iterator[SharedRay]:
    """Start Ray as a job would, in a folder of its own: no job of another process finds it there."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        with environment({**env, "RAY_TMPDIR": folder}):
            session.start(ClusterOptions(actors=MOST_ACTORS))
        try:
            yield SharedRay(dict(env))
        finally:
            ray.shutdown()


def run_here(main: Main, arguments: Sequence[str], env: Mapping[str, str]) -> Ended:
    stdout, stderr = io.StringIO(), io.StringIO()
    with environment(env), redirect_stdout(stdout), redirect_stderr(stderr):
        code = main(arguments)
    return Ended(arguments, code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def environment(env: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process for a while. Cached S3 clients would keep those that they began with."""
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with patch.dict(os.environ, env):
            yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def refusal(main: Main, *arguments: str) -> str:
    """The one sentence of a wrong request: exit code 2, nothing else is printed, Ray is not started."""
    started = AssertionError("Ray was started for a wrong request")
    with (
        patch.object(ray, "is_initialized", return_value=False),  # whatever tests ran before in this process
        patch.object(ray, "init", side_effect=started),
    ):
        ended = run_here(main, arguments, {})
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def command(corpus: str, output: str, *flags: str) -> list[str]:
    """The labelling job's command line."""
    return [sys.executable, "jobs/annotate.py", "--input", corpus, "--output", output, *flags]


def annotate(corpus: str, output: str, *flags: str, env: Mapping[str, str]) -> Ended:
    """Run the labelling job in a process of its own, with a Ray of its own."""
    return subprocess.run(
        command(corpus, output, *flags),
        cwd=ROOT,
        env=os.environ | dict(env),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def tiny_flags(folder: Path, clip: Path, diffusion: Path | str) -> list[str]:
    """Flags for the tiny models and a vocabulary of three classes."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text(VOCABULARY)
    models = ["--clip", f"local-dir:{clip}", "--diffusion", str(diffusion)]
    settings = ["--preset", "release", "--shorter-side-px", "112", "--logit-scale", "40", "--score-threshold", "0.2"]
    return ["--vocab", str(vocabulary), *models, *settings, "--background-threshold", "0.3"]


def broken_copy(model: Path, target: Path) -> Path:
    """A model folder that looks right until its weights are loaded."""
    for path in model.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes()[: 1000 if path.suffix == ".safetensors" else None])
    return target


class OutputReader:
    """An output folder, local or in the test's bucket."""

    def __init__(self, address: str, env: Mapping[str, str]) -> None:
        self.fs = s3_client(dict(env)) if address.startswith("s3://") else fsspec.filesystem("file")
        self.path = address.removeprefix("s3://")

    def names(self) -> set[str]:
        return {str(path).removeprefix(f"{self.path}/") for path in self.fs.find(self.path)}

    def files(self) -> dict[str, bytes]:
        return {name: self.fs.cat_file(f"{self.path}/{name}") for name in self.names()}

    def tables(self) -> list[Any]:
        names = sorted(name for name in self.names() if name.startswith("rows/"))
        return [pq.read_table(io.BytesIO(self.fs.cat_file(f"{self.path}/{name}"))) for name in names]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows by image id; fails on a doubled one."""
        rows = [row for table in self.tables() for row in table.to_pylist()]
        by_id = {row["image_id"]: row for row in rows}
        assert len(by_id) == len(rows), "an image has two rows"
        return by_id

    def json(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.files()[name])
        return document
