"""Real Ray clusters of several processes on this machine, each with ports, a folder and a token of its own.

Nothing here looks at or ends other clusters of the machine, as ``ray stop`` would.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tenacity import Retrying

from tests.support.patience import PATIENCE, PATIENCE_S
from tests.support.s3_server import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
GRACE_S = 5
PORT_FLAGS = ("dashboard-agent-listen-port", "metrics-export-port")


@dataclass(frozen=True)
class Head:
    """A running head node.

    Attributes:
        address: what workers and drivers connect to.
        dashboard: address of the job API.
        folder: Ray's temporary folder.
        env: what every process needs that connects: the token.
    """

    address: str
    dashboard: str
    folder: Path
    env: dict[str, str]


@contextmanager
def running(command: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator[None]:
    """A server in the background; afterwards nothing that it started is left."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # what jobs find as `python`
    with log.open("wb") as file:
        server = psutil.Popen(command, stdout=file, stderr=file, env=os.environ | {"PATH": path} | dict(env))
    try:
        yield
    finally:
        family = [server, *server.children(recursive=True)] if server.is_running() else []
        server.terminate()
        _, stubborn = psutil.wait_procs(family, timeout=GRACE_S)
        for process in stubborn:
            process.kill()
        psutil.wait_procs(stubborn)


@contextmanager
def ray_head(*flags: str, port: int | None = None, env: Mapping[str, str] | None = None) -> Iterator[Head]:
    """A head node with a token that lasts as long as the cluster and reports metrics every second."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:  # sockets need a short path
        folder = Path(name)
        free, dashboard, client, *others = free_ports(3 + len(PORT_FLAGS))
        port = port or free
        ours = [f"--{flag}={number}" for flag, number in zip(PORT_FLAGS, others, strict=True)]
        ours += [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        ours += [f"--temp-dir={folder}", f"--system-config={json.dumps({'metrics_report_interval_ms': 1000})}"]
        with running(node_command("--head", *ours, *flags), folder / "head.log", token | dict(env or {})):
            head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", folder, token)
            for attempt in Retrying(**PATIENCE):
                with attempt:
                    assert ray_nodes(head), (folder / "head.log").read_text()
            yield head


@contextmanager
def ray_worker(head: Head, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Another node of the cluster, once it is there: two that start at once would take the same socket."""
    nodes = len(ray_nodes(head))
    ports = free_ports(len(PORT_FLAGS))
    ours = [f"--{flag}={number}" for flag, number in zip(PORT_FLAGS, ports, strict=True)]
    command = node_command(f"--address={head.address}", *ours, *flags)
    log = head.folder / f"worker-{ports[0]}.log"
    with running(command, log, head.env | dict(env or {})):
        for attempt in Retrying(**PATIENCE):
            with attempt:
                assert len(ray_nodes(head)) > nodes, log.read_text()
        yield


def ray_nodes(head: Head) -> list[dict[str, Any]]:
    """The cluster's living nodes, asked by a process of its own: this one may be connected elsewhere."""
    ask = f"import json, ray; ray.init({head.address!r}, log_to_driver=False); print(json.dumps(ray.nodes()))"
    env = os.environ | head.env
    answer = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert answer.returncode == 0, answer.stderr
    return [node for node in json.loads(answer.stdout.splitlines()[-1]) if node["Alive"]]


def node_command(*flags: str) -> list[str]:
    ports = ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
    return [RAY, "start", *flags, *ports, "--disable-usage-stats", "--block"]
