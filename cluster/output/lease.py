"""One run at a time per output: a lease that lies in the output and is renewed while the run goes on.

``OUTPUT/_lease.json`` names the run that writes there. Clocks are not compared: who finds a lease watches whether it
changes. Object stores have no locks that fsspec could use everywhere, so two runs that start in the same second may
both write a lease; the later one stays, and the other sees it before it begins.
"""

import _thread
import contextlib
import json
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any
from uuid import uuid4

from rich.console import Console

from cluster.output.folder import LEASE, Output
from cluster.storage import STORAGE_ERRORS
from schemas.errors import RequestError

RENEW_S = 5.0
EXPIRES_S = 30.0
"""A lease that does not change for so long belongs to a run that is dead."""
SETTLE_S = 0.5
"""Between writing a lease and believing in it."""


class LeaseLostError(Exception):
    """Another run has taken over the output."""


class Lease:
    """Holds an output for a run, as a context manager.

    Args:
        output: the output; looked at and written to without the patience of `Location.patient`.
        console: told about waiting.
        expires_s: how long a lease may stay unchanged until it counts as left behind.
    """

    def __init__(self, output: Output, console: Console, expires_s: float = EXPIRES_S) -> None:
        self.output, self.console, self.expires_s = output, console, expires_s
        self.content: dict[str, Any] = {
            "run": uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "renewals": 0,
        }  # fmt: skip
        self.lost = False
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
            if not self.is_ours():
                raise self.refusal(self.read() or {})
        except STORAGE_ERRORS as error:
            raise self.output.unusable(error) from error
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back.

        Raises:
            LeaseLostError: another run took it, which was why this one was interrupted.
        """
        self.finished.set()
        self.thread.join()
        if self.lost:
            raise LeaseLostError(f"another run has taken over --output {self.output.location.url}") from error
        with contextlib.suppress(*STORAGE_ERRORS):  # it will expire
            self.output.location.fs.rm_file((self.output.location / LEASE).path)

    def wait_for_silence(self) -> None:
        """Return once no other run holds the lease, and refuse if one shows that it is alive."""
        found = self.read()
        if found is None or is_dead(found):
            return
        self.console.print(
            f"The output has a run on {found.get('host')} (process {found.get('pid')}): "
            f"watching for up to {self.expires_s:g} s whether it is alive.", highlight=False,
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
            f"--output {self.output.location.url} is being written to by another run, on {where}: "
            f"wait until it ends, stop it, or choose another output"
        )

    def renew(self) -> None:
        """In a thread: renew the lease until the run ends, and interrupt the run if another one has taken it."""
        while not self.finished.wait(RENEW_S):
            try:
                if not self.is_ours():
                    self.lost = True
                    _thread.interrupt_main()
                    return
                self.write()
            except STORAGE_ERRORS:
                continue  # the job's own requests tell whether it matters

    def is_ours(self) -> bool:
        return (self.read() or {}).get("run") == self.content["run"]

    def read(self) -> dict[str, Any] | None:
        try:
            return self.output.read_json(LEASE)
        except json.JSONDecodeError:
            return {}

    def write(self) -> None:
        self.content["renewals"] += 1
        self.output.write(LEASE, json.dumps(self.content).encode("ascii"), writer=self.content["run"])


def is_dead(holder: dict[str, Any]) -> bool:
    """True if the holder was a process of this machine that is gone."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is somebody else's, and alive
        return False
    return False
