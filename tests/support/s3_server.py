"""A real S3 server on loopback for tests: SeaweedFS, one process, its files in a folder of the test's."""

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import s3fs
from tenacity import retry

from tests.support.patience import PATIENCE

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key-never-to-be-logged"
BUCKET = "test"
BELOW_EPHEMERAL = range(15_000, 32_000)
SERVICES = ("master", "volume", "filer", "s3", "admin")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now, and that the system gives to no connection while a server is away."""
    with contextlib.ExitStack() as sockets:
        ports: list[int] = []
        for port in random.SystemRandom().sample(BELOW_EPHEMERAL, len(BELOW_EPHEMERAL)):
            if len(ports) == count:
                break
            with contextlib.suppress(OSError):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
        return ports


class Seaweed:
    """The server; stopped and started again, it is the same one.

    Args:
        folder: its files.
        options: of the server's command line.

    Attributes:
        environment: variables with which a client reaches it.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        ports = free_ports(2 * len(SERVICES))
        flags = [
            flag
            for service, http, grpc in zip(SERVICES, ports[::2], ports[1::2], strict=True)
            for flag in (f"-{service}.port={http}", f"-{service}.port.grpc={grpc}")
        ]
        off = ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        where = [f"-dir={folder}", f"-bucket={BUCKET}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        self.command = [str(Path(sys.executable).with_name("weed")), "mini", *where, *flags, *off, *options]
        self.environment = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[2 * SERVICES.index('s3')]}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.folder = folder

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(self.command, env=os.environ | self.environment, stdout=log, stderr=log)
        wait_for_bucket(self.environment)

    def stop(self) -> None:
        self.server.kill()
        self.server.wait()


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[dict[str, str]]:
    """Run the server; yields the environment variables with which a client reaches it."""
    server = Seaweed(folder)
    try:
        server.start()
        yield server.environment
    finally:
        server.stop()


@retry(**PATIENCE)
def wait_for_bucket(environment: dict[str, str]) -> None:
    fs = s3_client(environment)
    fs.pipe_file(f"{BUCKET}/ready", b"yes")
    assert fs.cat_file(f"{BUCKET}/ready") == b"yes"
    fs.rm_file(f"{BUCKET}/ready")


def s3_client(environment: dict[str, str]) -> s3fs.S3FileSystem:
    """A client for the test's own reading and writing; independent of this process's environment."""
    return s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        use_listings_cache=False,
        skip_instance_cache=True,
    )
