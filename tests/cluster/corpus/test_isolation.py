"""Whatever one image does to the process that decodes it, the next one is decoded."""

import ctypes
import ctypes.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from cluster.corpus.isolation import Answer, IsolatedProcess
from cluster.corpus.limits import DEFAULT_LIMITS, Limits
from schemas.errors import DecodeError
from schemas.rows import Status
from tests.support.patience import wait_until


def work(order: bytes) -> Answer:
    """What it is told."""
    match order:
        case b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"abort":
            ctypes.CDLL(None).abort()
        case b"loop":
            ctypes.PyDLL(None).pause()  # in C, holding the interpreter's lock
        case b"swallow":
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    continue
        case b"python memory":
            bytearray(10 * 10**9)
        case b"killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"exit":
            os._exit(3)
        case b"error":
            raise RuntimeError("unforeseen")
        case b"refuse":
            raise DecodeError(Status.TRUNCATED, "half of it is missing")
        case b"environment":
            return {"names": sorted(os.environ), "open": sorted(os.listdir("/proc/self/fd"))}
    return {"order": order, "process": os.getpid(), "nothing": None, "empty": b""}


@pytest.mark.parametrize(
    ("order", "status", "reason"),
    [
        (b"crash", Status.CRASHED, r"the decoder crashed \(SIGSEGV\)"),
        (b"abort", Status.CRASHED, r"the decoder crashed \(SIGABRT\)"),
        (b"exit", Status.CRASHED, "the decoder ended with exit code 3"),
        (b"error", Status.CRASHED, "the decoder ended with exit code 1"),
        (b"loop", Status.TIMED_OUT, r"decoding took longer than 0.5 s \(--picture-timeout-s\)"),
        (b"swallow", Status.TIMED_OUT, "decoding took longer than 0.5 s"),
        (b"killed", Status.OUT_OF_MEMORY, "the decoder was killed, probably for its use of memory"),
        (b"python memory", Status.OUT_OF_MEMORY, "the image does not fit into memory"),
        (b"refuse", Status.TRUNCATED, "half of it is missing"),
    ],
)
def test_one_image_is_lost_and_no_other(order: bytes, status: Status, reason: str) -> None:
    process = IsolatedProcess(work, Limits(picture_timeout_s=0.5))
    before = process(b"good")
    with pytest.raises(DecodeError, match=f"^{reason}") as caught:
        process(order)
    assert caught.value.status == status
    after = process(b"good")
    assert after | {"process": 0} == before | {"process": 0} == {
        "order": b"good", "process": 0, "nothing": None, "empty": b"",
    }  # fmt: skip
    survives = order in (b"python memory", b"refuse")
    assert (after["process"] == before["process"]) is survives, "a new process only if the old one has died"


def test_a_process_that_was_killed_between_two_images_costs_none() -> None:
    process = IsolatedProcess(work, DEFAULT_LIMITS)
    first = process(b"good")["process"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: process.child.process.poll() is not None)
    assert process(b"good")["process"] != first


def test_the_process_has_no_secrets_and_no_files_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with open(os.devnull) as ours:
        os.set_inheritable(ours.fileno(), True)
        found = IsolatedProcess(work, DEFAULT_LIMITS)(b"environment")
    assert set(found["names"]) <= {
        "LC_CTYPE", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONPATH",
    }  # fmt: skip
    assert len(found["open"]) <= 5, "standard streams, the connection, and the listing itself"


@pytest.mark.parametrize("order", [b"good", b"loop"])
def test_a_killed_parent_leaves_no_process(order: bytes, tmp_path: Path) -> None:
    """A process in an endless loop must not outlive a killed task."""
    script = f"""
        from cluster.corpus.isolation import IsolatedProcess
        from cluster.corpus.limits import Limits
        from tests.cluster.corpus.test_isolation import work
        process = IsolatedProcess(work, Limits(picture_timeout_s=3))
        print(process(b"good")["process"], flush=True)
        while True:
            process({order!r})
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
