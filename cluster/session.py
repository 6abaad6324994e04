"""Connecting to a Ray cluster, or starting Ray on this machine."""

import logging
import os
import socket
from dataclasses import dataclass

import ray
import ray.data

from cluster.sizing import Cluster, Resources, plan_resources
from schemas.errors import JobFailedError, RequestError

CONNECT_TIMEOUT_S = 10.0
LARGEST_NUMBER = 10**6
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads of a CPU actor sleep while they wait for each other. By default they spin, and the job is ten times slower as
soon as another process wants a core."""


@dataclass(frozen=True)
class ClusterOptions:
    """Where a job runs, and with what batch sizes."""

    batch_size: int = 8
    """Images that an actor gets at a time."""
    actors: int | None = None
    """Number of actors (default: as many as the GPUs allow; without GPUs one, which uses all cores). On a cluster that
    grows, give the number that it may grow to."""
    gpus_per_actor: float | None = None
    """GPUs for each actor; a fraction lets several share one, 0 uses none (default: 1 if the cluster has GPUs)."""
    rows_per_file: int = 1000
    """Least number of rows in a Parquet file. Rows of unfinished files are labelled again after a crash."""
    stall_timeout_s: float = 3600.0
    """A process that labels one batch for longer than this many seconds is killed and replaced. An image with which
    that happens again and again is given up."""
    address: str | None = None
    """Ray cluster to run on (default: RAY_ADDRESS, else Ray is started on this machine)."""

    def check(self) -> None:
        """Raises RequestError: a number makes no sense."""
        for name in ("batch_size", "actors", "rows_per_file"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST_NUMBER:
                raise RequestError(
                    f"--{name.replace('_', '-')} must be at least 1 and at most {LARGEST_NUMBER:,}, not {value}"
                )
        if not 1 <= self.stall_timeout_s <= LARGEST_NUMBER:
            raise RequestError(
                f"--stall-timeout-s must be between 1 and {LARGEST_NUMBER:,}, not {self.stall_timeout_s:g}"
            )
        gpus = self.gpus_per_actor
        if gpus is not None and not (gpus >= 0 and (gpus < 1 or gpus.is_integer())):  # as Ray wants it
            raise RequestError(f"--gpus-per-actor must be between 0 and 1 or a whole number, not {gpus:g}")


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
            ray.init(num_cpus=slots, include_dashboard=False, logging_level=logging.CRITICAL, log_to_driver=False)
        except Exception as error:  # Ray raises a plain one if it does not start in time
            reason = str(error).partition("\n")[0]
            raise JobFailedError(f"Ray does not start on this machine: {reason}") from error
        return plan_resources(options.actors, options.gpus_per_actor, Cluster.now())
    try:
        check_reachable(address)
        ray.init(
            address=address,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
            logging_level=logging.CRITICAL,
            log_to_driver=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"--address {address}: no Ray cluster answers there ({type(error).__name__})") from error
    return plan_resources(options.actors, options.gpus_per_actor, Cluster.now())


def is_local(options: ClusterOptions) -> bool:
    """True if Ray runs on this machine only, for this job."""
    return not (options.address or os.environ.get("RAY_ADDRESS"))


def check_reachable(address: str) -> None:
    """Raises OSError at once if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
