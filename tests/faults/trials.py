"""One trial of every kind of fault, with real processes: start the job, break something, run the job to its end."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from tests.support.corpora import sample_images, shards_of, tar_bytes, write_tars
from tests.support.jobs import ROOT, OutputReader, command, tiny_flags
from tests.support.s3_server import BUCKET, Seaweed, free_ports, s3_client
from tests.support.tiny import write_tiny_clip, write_tiny_diffusion

IMAGES, PER_SHARD = 96, 8
SMALL_STEPS = ["--rows-per-file", "4", "--batch-size", "2"]
S3_CORPUS, S3_OUTPUT = f"s3://{BUCKET}/in", f"s3://{BUCKET}/out"
OUTAGE_S = 20.0
MOST_RUNS = 5


@dataclass(frozen=True)
class Bench:
    """A corpus, the request, and what an undisturbed run makes of it.

    Attributes:
        folder: room for outputs.
        seconds: how long the undisturbed run took.
    """

    folder: Path
    corpus: Path
    flags: list[str]
    rows: dict[str, dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Trial:
    """What came of a trial.

    Attributes:
        lost: images of the undisturbed run without a row.
        doubled: rows beyond the first of their image.
        changed: images whose row differs.
        runs: how often the command was given.
        seconds: from the fault to the end of the last run.
    """

    lost: int
    doubled: int
    changed: int
    runs: int
    seconds: float

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.changed)


def prepare(folder: Path) -> Bench:
    """Tiny models with diffusion over tar shards on the local disk, and one run that nothing disturbs."""
    corpus = write_tars(folder / "corpus", sample_images(IMAGES), PER_SHARD)
    models = write_tiny_clip(folder / "models" / "clip"), write_tiny_diffusion(folder / "models" / "diffusion")
    flags = [*tiny_flags(folder, *models), *SMALL_STEPS]
    started = time.monotonic()
    run = start(str(corpus), str(folder / "undisturbed"), flags)
    assert run.wait() == 0
    seconds = time.monotonic() - started
    rows = OutputReader(str(folder / "undisturbed"), {}).rows()
    assert len(rows) == IMAGES
    return Bench(folder, corpus, flags, rows, seconds)


def start(corpus: str, output: str, flags: list[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(corpus, output, *flags), cwd=ROOT, env=os.environ | dict(env or {}), **quiet)


def finish(job: subprocess.Popen[bytes], again: Callable[[], subprocess.Popen[bytes]]) -> int:
    """Give the same command until a run ends well; returns how many runs there were."""
    runs = 1
    while job.wait(timeout=300) != 0:
        assert runs < MOST_RUNS, "the job does not come to an end"
        job, runs = again(), runs + 1
    return runs


def judge(bench: Bench, output: str, env: Mapping[str, str], runs: int, since: float) -> Trial:
    """Compare an output with the undisturbed run's."""
    seconds = time.monotonic() - since
    found = [row for table in OutputReader(output, env).tables() for row in table.to_pylist()]
    by_id = {row["image_id"]: row for row in found}
    changed = sum(
        without_origin(by_id[name]) != without_origin(row) for name, row in bench.rows.items() if name in by_id
    )
    return Trial(len(bench.rows.keys() - by_id.keys()), len(found) - len(by_id), changed, runs, seconds)


def without_origin(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what depends on where the corpus is: addresses and versions of shards."""
    return {name: value for name, value in row.items() if name not in {"uri", "shard_version"}}


def wait_until(happened: Callable[[], Any], job: subprocess.Popen[bytes], seconds: float = 120.0) -> Any:
    """Wait for something to happen while the job runs; None if the job ends first."""
    waiting = Retrying(stop=stop_after_delay(seconds), wait=wait_fixed(0.1), retry=retry_if_result(lambda x: not x))
    return waiting(lambda: job.poll() is not None or happened()) if job.poll() is None else None


def driver_killed(bench: Bench, number: int, rng: random.Random) -> Trial:
    """``kill -9`` of the driver at any moment of the run."""
    return driver_stopped(bench, f"driver-{number}", rng, lambda job: job.kill())


def driver_terminated(bench: Bench, number: int, rng: random.Random) -> Trial:
    """SIGTERM and five seconds of grace before ``kill -9``, as spot machines get it."""

    def terminate(job: subprocess.Popen[bytes]) -> None:
        job.terminate()
        try:
            job.wait(timeout=5)
        except subprocess.TimeoutExpired:
            job.kill()

    return driver_stopped(bench, f"terminated-{number}", rng, terminate)


def driver_stopped(
    bench: Bench, name: str, rng: random.Random, stop: Callable[[subprocess.Popen[bytes]], None]
) -> Trial:
    output = str(bench.folder / name)

    def again() -> subprocess.Popen[bytes]:
        return start(str(bench.corpus), output, bench.flags)

    job = again()
    time.sleep(rng.uniform(0, bench.seconds))
    since = time.monotonic()
    stop(job)
    job.wait()
    return judge(bench, output, {}, finish(again(), again) + 1, since)


def actor_killed(bench: Bench, number: int, rng: random.Random) -> Trial:
    """``kill -9`` of the process that labels, while it labels."""
    output = bench.folder / f"actor-{number}"

    def again() -> subprocess.Popen[bytes]:
        return start(str(bench.corpus), str(output), bench.flags)

    job = again()
    wait_until(lambda: list(output.glob("rows/*.parquet")), job)
    time.sleep(rng.uniform(0, 1))
    since = time.monotonic()
    family = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
    actors = [process for process in family if "Labeller" in command_line(process)]
    for process in actors:
        process.kill()
    assert actors or job.poll() is not None, "there is no actor to kill"
    return judge(bench, str(output), {}, finish(job, again), since)


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def small_cluster() -> Iterator[Cluster]:
    """A head that runs no tasks, and two nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=3)
        yield cluster
    finally:
        cluster.shutdown()


def node_killed(bench: Bench, number: int, rng: random.Random) -> Trial:
    """``kill -9`` of one of two nodes with all that runs on it; another one comes a few seconds later."""
    return node_lost(bench, f"node-{number}", rng, graceful=False)


def node_terminated(bench: Bench, number: int, rng: random.Random) -> Trial:
    """SIGTERM for one of two nodes, as a spot machine gets it before it goes; another one comes a few seconds later."""
    return node_lost(bench, f"node-terminated-{number}", rng, graceful=True)


def node_lost(bench: Bench, name: str, rng: random.Random, graceful: bool) -> Trial:
    output = bench.folder / name
    with small_cluster() as cluster:

        def again() -> subprocess.Popen[bytes]:
            return start(str(bench.corpus), str(output), [*bench.flags, "--address", cluster.address])

        job = again()
        wait_until(lambda: list(output.glob("rows/*.parquet")), job)
        time.sleep(rng.uniform(0, 1))
        since = time.monotonic()
        cluster.remove_node(rng.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=graceful)
        time.sleep(3)
        cluster.add_node(num_cpus=3)
        return judge(bench, str(output), {}, finish(job, again), since)


def storage_gone(bench: Bench, number: int, rng: random.Random) -> Trial:
    """The S3 server that holds input and output is killed, and started again after 20 seconds."""
    with corpus_in_s3(bench.folder / f"s3-{number}") as server:

        def again() -> subprocess.Popen[bytes]:
            return start(S3_CORPUS, S3_OUTPUT, bench.flags, server.environment)

        job = again()
        reader = OutputReader(S3_OUTPUT, server.environment)
        wait_until(lambda: any(name.endswith("-0.parquet") for name in reader.names()), job)
        time.sleep(rng.uniform(0, 1))
        since = time.monotonic()
        server.stop()
        time.sleep(OUTAGE_S)
        server.start()
        return judge(bench, S3_OUTPUT, server.environment, finish(job, again), since)


@contextmanager
def corpus_in_s3(folder: Path) -> Iterator[Seaweed]:
    """A server of its own with the bench's images."""
    server = Seaweed(folder)
    try:
        server.start()
        client = s3_client(server.environment)
        for shard, members in enumerate(shards_of(sample_images(IMAGES), PER_SHARD)):
            client.pipe_file(f"{BUCKET}/in/{shard:05}.tar", tar_bytes(members))
        yield server
    finally:
        server.stop()


def storage_unreliable(bench: Bench, number: int, rng: random.Random) -> Trial:
    """From first to last the S3 server refuses every seventh request, and every tenth answer stops halfway for 2 s."""
    with corpus_in_s3(bench.folder / f"unreliable-{number}") as server:
        (port,) = free_ports(1)
        upstream = server.environment["AWS_ENDPOINT_URL"]
        proxy = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.proxy", str(port), upstream, str(rng.randrange(2**32))], cwd=ROOT
        )
        try:
            env = server.environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}

            def again() -> subprocess.Popen[bytes]:
                return start(S3_CORPUS, S3_OUTPUT, bench.flags, env)

            since = time.monotonic()
            return judge(bench, S3_OUTPUT, server.environment, finish(again(), again), since)
        finally:
            proxy.kill()
            proxy.wait()


def disk_full(bench: Bench, number: int, rng: random.Random) -> Trial:
    """The output's disk has room for a part of the rows; more room is made, and the command is given again."""
    disk = bench.folder / f"disk-{number}"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={rng.randrange(80, 200)}k", "tmpfs", str(disk))
    try:
        output = str(disk / "output")

        def again() -> subprocess.Popen[bytes]:
            return start(str(bench.corpus), output, bench.flags)

        failed = again()
        assert failed.wait(timeout=300) == 1, "the disk was large enough"
        since = time.monotonic()
        mount("-o", "remount,size=100m", str(disk))
        return judge(bench, output, {}, finish(again(), again) + 1, since)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def head_killed(bench: Bench, number: int, rng: random.Random) -> Trial:
    """``kill -9`` of the process that knows all others of the cluster. Ray ends the driver then."""
    output = bench.folder / f"head-{number}"

    def again() -> subprocess.Popen[bytes]:
        return start(str(bench.corpus), str(output), bench.flags)

    with (bench.folder / f"head-{number}.log").open("w+") as log:
        job = subprocess.Popen(
            command(str(bench.corpus), str(output), *bench.flags), cwd=ROOT, stdout=log, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: list(output.glob("rows/*.parquet")), job)
        since = time.monotonic()
        for process in psutil.Process(job.pid).children(recursive=True):
            if "gcs_server" in process.name():
                process.kill()
        assert job.wait(timeout=300) != 0
        log.seek(0)
        assert "does not answer. Ray ends the job if that lasts" in log.read()
    return judge(bench, str(output), {}, finish(again(), again) + 1, since)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


KINDS: dict[str, tuple[Callable[[Bench, int, random.Random], Trial], int]] = {
    "driver killed": (driver_killed, 30),
    "driver terminated": (driver_terminated, 3),
    "actor killed": (actor_killed, 20),
    "node killed": (node_killed, 10),
    "node terminated": (node_terminated, 3),
    "head killed": (head_killed, 3),
    "storage gone for 20 s": (storage_gone, 5),
    "storage unreliable": (storage_unreliable, 3),
    "disk full": (disk_full, 3),
}
"""By name: one trial, and how many of them the table has."""
