"""Jobs on clusters without any worker: they wait for the first one, and the cluster shrinks when they are done."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from tenacity import Retrying

from tests.support.corpora import sample_images, write_tars
from tests.support.jobs import ROOT, OutputReader, command, tiny_flags
from tests.support.patience import PATIENCE, PATIENCE_S
from tests.support.ray_processes import Head, ray_head, ray_nodes, ray_worker
from tests.support.s3_server import free_ports

pytestmark = pytest.mark.long
IMAGES, PER_SHARD = 24, 8
NODE_CPUS = 4
HEAD = ("--num-cpus=0", "--num-gpus=0")
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
AUTOSCALER = {
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


@contextmanager
def growing_cluster(folder: Path) -> Iterator[Head]:
    """A head that takes no tasks and an autoscaler that may add one node of this machine, and drops idle ones."""
    (port,) = free_ports(1)
    provider = {"type": "external", "module": PROVIDER, "gcs_address": f"127.0.0.1:{port}", "use_node_id_as_ip": True}
    types = {
        FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": NODE_CPUS}, "node_config": {}, "max_workers": 1},
    }
    config = {
        "cluster_name": "growing",
        "provider": provider,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": types,
        "max_workers": 1,
        "idle_timeout_minutes": 0.1,
        "cluster_synced_files": [],  # this and what follows is not used, but must be there
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(config))
    with ray_head(*HEAD, f"--autoscaling-config={file}", port=port, env=AUTOSCALER) as head:
        yield head


@pytest.fixture
def job_command(tmp_path: Path, tiny_clip: Path, tiny_diffusion: Path) -> list[str]:
    """The job, but for the cluster."""
    corpus = write_tars(tmp_path / "in", sample_images(IMAGES), PER_SHARD)
    return command(str(corpus), str(tmp_path / "out"), *tiny_flags(tmp_path, tiny_clip, tiny_diffusion))


@contextmanager
def started(job: list[str], head: Head, log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A job on the cluster; afterwards it does not run any more."""
    with log.open("wb") as file:
        environment = os.environ | head.env | settings
        process = subprocess.Popen(
            [*job, "--address", head.address], cwd=ROOT, env=environment, stdout=file, stderr=file
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def cpus(head: Head) -> list[float]:
    """CPU slots of the living nodes."""
    return sorted(node["Resources"].get("CPU", 0.0) for node in ray_nodes(head))


def test_a_cluster_grows_for_a_job_and_shrinks_after_it(job_command: list[str], tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    with growing_cluster(tmp_path) as head:
        assert cpus(head) == [0]
        with started(job_command, head, log) as job:
            for attempt in Retrying(**PATIENCE):
                with attempt:
                    assert cpus(head) == [0, NODE_CPUS], log.read_text()
            assert job.wait(PATIENCE_S) == 0, log.read_text()
        assert statuses(tmp_path / "out") == ["ok"] * IMAGES
        for attempt in Retrying(**PATIENCE):
            with attempt:
                assert cpus(head) == [0]


def test_a_job_waits_for_its_first_node_and_says_so(job_command: list[str], tmp_path: Path) -> None:
    """Also longer than Ray Data would wait by itself."""
    log = tmp_path / "job.log"
    with (
        ray_head(*HEAD) as head,
        started(job_command, head, log, RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="10") as job,
    ):
        for attempt in Retrying(**PATIENCE):
            with attempt:
                assert "0 images labelled: waiting for the cluster to get a node with a CPU" in log.read_text()
        assert job.poll() is None, log.read_text()
        with ray_worker(head, f"--num-cpus={NODE_CPUS}", "--num-gpus=0"):
            assert job.wait(PATIENCE_S) == 0, log.read_text()
    assert statuses(tmp_path / "out") == ["ok"] * IMAGES


def statuses(output: Path) -> list[str]:
    return [row["status"] for row in OutputReader(str(output), {}).rows().values()]
