"""Connecting to a Ray cluster, or starting Ray on this machine."""

import logging
import os
import socket
from dataclasses import dataclass

import ray
import ray.data

from schemas.errors import RequestError

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Resources:
    """How the annotating actors are placed.

    Attributes:
        actors: number of actors.
        gpus_per_actor: GPUs that each reserves; 0 runs on the CPU.
        calls_per_actor: threads in each. Two on a GPU: while it works on one batch, the CPU prepares the next and
            encodes the one before.
    """

    actors: int
    gpus_per_actor: float
    calls_per_actor: int


def start(address: str | None, actors: int | None) -> None:
    """Connect to the cluster at ``address`` (or ``RAY_ADDRESS``), else start Ray on this machine.

    Ray on this machine gets a few more CPU slots than there are cores: the annotating actors
    hold theirs all the time, and reading and decoding must never wait for them for ever.

    Raises:
        RequestError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the console's; the log file below /tmp/ray keeps everything
            handler.setLevel(logging.CRITICAL)
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        slots = (os.cpu_count() or 1) + (actors or 1)
        ray.init(num_cpus=slots, include_dashboard=False, logging_level=logging.CRITICAL, log_to_driver=False)
        return
    try:
        check_reachable(address)
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"--address {address}: no Ray cluster answers there ({type(error).__name__})") from error


def check_reachable(address: str) -> None:
    """Raises OSError at once if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


def plan_resources(actors: int | None, gpus_per_actor: float) -> Resources:
    """Actors on all GPUs of the cluster if it has any, else on the CPU.

    Args:
        actors: number of actors; None takes as many as the GPUs allow, or one without GPUs.
        gpus_per_actor: GPUs for each, may be a fraction.
    """
    available = ray.cluster_resources()
    gpus = available.get("GPU", 0.0)
    if gpus and gpus_per_actor:
        return Resources(actors or max(1, int(gpus / gpus_per_actor)), gpus_per_actor, calls_per_actor=2)
    return Resources(actors or 1, 0.0, calls_per_actor=1)
