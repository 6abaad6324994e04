"""Real Ray clusters of several processes on this machine, each with ports, a folder and a token of its own.

Nothing here looks at or ends other clusters of the machine, as ``ray stop`` would.
"""

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.s3_server import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
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
    with log.open("wb") as file:
        server = psutil.Popen(command, stdout=file, stderr=file, env=os.environ | dict(env))
    try:
        yield
    finally:
        family = [server, *server.children(recursive=True)] if server.is_running() else []
        server.terminate()
        _, stubborn = psutil.wait_procs(family, timeout=20)
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
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", folder, token)


@contextmanager
def ray_worker(head: Head, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Another node of the cluster."""
    ours = [f"--{flag}={number}" for flag, number in zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True)]
    (log,) = free_ports(1)
    command = node_command(f"--address={head.address}", *ours, *flags)
    with running(command, head.folder / f"worker-{log}.log", head.env | dict(env or {})):
        yield


def node_command(*flags: str) -> list[str]:
    ports = ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
    return [RAY, "start", *flags, *ports, "--disable-usage-stats", "--block"]
