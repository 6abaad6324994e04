"""One run at a time per output: the run protocol, and the lease that a run holds and renews in the output.

``OUTPUT/_lease.json`` names the run that writes there. A run that finds a lease polls it for renewal, because clocks of
machines differ. fsspec has no locks that every object store supports. Two runs that start in the same second may both
write a lease. The later lease stays, and the other run sees it before it begins.
"""

import _thread
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from uuid import uuid4

from rich.console import Console

from cliper.files import STORAGE_ERRORS
from cluster.output.folder import LEASE, DamagedFileError, Output
from schemas.errors import JobFailedError, RequestError
from schemas.manifest import Manifest

RENEW_S = 5.0
EXPIRES_S = 30.0
"""A lease that does not change for this long belongs to a dead run."""
SETTLE_S = 0.5
"""Time between writing a lease and reading it back."""


@contextlib.contextmanager
def exclusive_run(output: Output, manifest: Manifest, console: Console, overwrite: bool = False) -> Iterator[Output]:
    """The run protocol: hold the lease, write the manifest, do the block's work, which ends with `Output.finish`.

    An error in the block leaves the output unfinished. The next run with the same manifest continues it.

    Args:
        output: the output, finished or not.
        manifest: the request.
        console: told about waiting.
        overwrite: delete what earlier runs wrote.

    Yields:
        The same output, with a storage client that retries transient faults.

    Raises:
        RequestError: the output belongs to another request or run, or cannot be written.
        JobFailedError: another run has taken over the output, or somebody has deleted it.
    """
    with Lease(output, console):
        output.check(manifest, overwrite)  # another request may have begun since the job's own check
        output.begin(manifest, overwrite)
        yield output.with_retries()


class Lease:
    """Holds an output for a run, as a context manager.

    Args:
        output: the output. Its storage client must not retry for long, because a lease expires.
        console: told about waiting.
        expires_s: how long a lease may stay unchanged before it counts as abandoned.
    """

    def __init__(self, output: Output, console: Console, expires_s: float = EXPIRES_S) -> None:
        self.output, self.console, self.expires_s = output, console, expires_s
        self.content: dict[str, Any] = {
            "run": uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "renewals": 0,
        }  # fmt: skip
        self.lost = ""
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self.renew, daemon=True)

    def __enter__(self) -> "Lease":
        """Take the lease.

        Raises:
            RequestError: another run holds it, or the output cannot be written.
        """
        try:
            self.wait_for_silence()
            self.write()
            time.sleep(SETTLE_S)
            holder = self.read() or {}
            if not self.is_ours(holder):
                raise self.refusal(holder)
        except STORAGE_ERRORS as error:
            raise self.output.location.refusal(error) from error
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back.

        Raises:
            JobFailedError: another run took the lease, or it was deleted, and therefore this run was interrupted.
        """
        self.finished.set()
        self.thread.join()
        if self.lost:
            raise JobFailedError(self.lost) from error
        with contextlib.suppress(*STORAGE_ERRORS):  # it will expire
            self.output.location.fs.rm_file((self.output.location / LEASE).path)

    def wait_for_silence(self) -> None:
        """Return when no other run holds the lease. Refuse if another run renews it."""
        found = self.read()
        if found is None or is_dead(found):
            return
        self.console.print(
            f"The output has a run on {found.get('host')} (process {found.get('pid')}): "
            f"watching for up to {self.expires_s:g} s whether it is alive.",
        )  # fmt: skip
        deadline = time.monotonic() + self.expires_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.expires_s / 10))
            now = self.read()
            if now is None:
                return
            if now != found:
                raise self.refusal(now)

    def refusal(self, holder: dict[str, Any]) -> RequestError:
        where = f"{holder.get('host')} (process {holder.get('pid')})"
        return RequestError(
            f"{self.output.location} is being written to by another run, on {where}: "
            f"wait until it ends, stop it, or choose another output"
        )

    def renew(self) -> None:
        """In a thread: renew the lease until the run ends. Interrupt the run if the lease is another one's or gone."""
        while not self.finished.wait(RENEW_S):
            try:
                holder = self.read()
                if holder is None or not self.is_ours(holder):
                    place = self.output.location
                    self.lost = f"{place} was deleted" if holder is None else f"another run has taken over {place}"
                    _thread.interrupt_main()
                    return
                self.write()
            except STORAGE_ERRORS:
                continue  # if the fault matters, the job's own requests fail too

    def is_ours(self, holder: dict[str, Any]) -> bool:
        return bool(holder.get("run") == self.content["run"])

    def read(self) -> dict[str, Any] | None:
        try:
            return self.output.read_json(LEASE)
        except DamagedFileError:
            return {}

    def write(self) -> None:
        self.content["renewals"] += 1
        self.output.write(LEASE, json.dumps(self.content).encode("ascii"), writer=self.content["run"])


def is_dead(holder: dict[str, Any]) -> bool:
    """True if the holder was a process of this machine that has ended."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's process, and alive
        return False
    return False
