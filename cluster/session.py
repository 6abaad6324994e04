"""Connecting to a Ray cluster, or starting Ray on this machine."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

from cluster.options import ClusterOptions
from cluster.sizing import Cluster, Resources, plan_resources
from schemas.errors import JobFailedError, RequestError

CONNECT_TIMEOUT_S = 10.0
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads of a CPU actor sleep while they wait for each other. By default they spin, and the job is ten times slower as
soon as another process wants a core."""


def start(options: ClusterOptions) -> Resources:
    """Connect to the cluster at ``address`` (or ``RAY_ADDRESS``), else start Ray on this machine; plan the actors.

    On this machine Ray gets more CPU slots than there are cores. Labelling actors hold theirs all the time. Ray Data
    keeps a share of the others for writing, so that with two slots for two cores only one read task would run.

    Raises:
        RequestError: there is no cluster at the address, or it lacks GPUs and the number of actors is not given.
        JobFailedError: Ray does not start on this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # of the console; the log file below /tmp/ray keeps everything
            handler.setLevel(logging.CRITICAL)
    address = options.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():  # by an earlier run of the same process
        return plan_resources(options.actors, options.gpus_per_actor, Cluster.now())
    if not address:
        os.environ.update(WORKER_ENVIRONMENT)
        slots = 2 * (os.cpu_count() or 1) + (options.actors or 1)
        try:
            with silence():
                ray.init(num_cpus=slots, include_dashboard=False, logging_level=logging.CRITICAL, log_to_driver=False)
        except Exception as error:  # Ray raises a plain one if it does not start in time
            reason = str(error).partition("\n")[0]
            raise JobFailedError(f"Ray does not start on this machine: {reason}") from error
        return plan_resources(options.actors, options.gpus_per_actor, Cluster.now())
    try:
        check_reachable(address)
        with silence():
            ray.init(
                address=address,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
                logging_level=logging.CRITICAL,
                log_to_driver=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"--address {address}: no Ray cluster answers there ({type(error).__name__})") from error
    return plan_resources(options.actors, options.gpus_per_actor, Cluster.now())


@contextmanager
def silence() -> Iterator[None]:
    """Without standard error, where Ray's C++ code would say that it follows RAY_BACKEND_LOG_LEVEL."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def is_local(options: ClusterOptions) -> bool:
    """True if Ray runs on this machine only, for this job."""
    return not (options.address or os.environ.get("RAY_ADDRESS"))


def check_reachable(address: str) -> None:
    """Raises OSError at once if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
