"""Options for where and how a job runs, apart from what they need to run it: ``--help`` must not wait for Ray."""

from dataclasses import dataclass

from schemas.errors import RequestError

LARGEST_NUMBER = 10**6


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
    flush_minutes: float = 10.0
    """A file with fewer rows is written when its first row is older than this and another one comes."""
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
        if not 0 < self.flush_minutes <= LARGEST_NUMBER:
            raise RequestError(
                f"--flush-minutes must be above 0 and at most {LARGEST_NUMBER:,}, not {self.flush_minutes:g}"
            )
        gpus = self.gpus_per_actor
        if gpus is not None and not (gpus >= 0 and (gpus < 1 or gpus.is_integer())):  # as Ray wants it
            raise RequestError(f"--gpus-per-actor must be between 0 and 1 or a whole number, not {gpus:g}")
