"""Decoding in a child process, which one image may crash, block or fill without any harm to the job.

Decoders are C code that reads bytes of strangers. No exception handler stops a loop in C or a segmentation fault. The
child has a timer of the kernel and a limit on its memory. It has neither credentials nor open files of its parent, and
its answers are JSON and raw bytes, never pickles.

The standard library's and pebble's process pools were measured too: 4.5 ms for each image of 500 x 375 pixels, most of
it in their threads and queues. A socket and one process take 1 ms.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster.corpus.limits import Limits
from schemas.errors import DecodeError
from schemas.rows import Status

COPIES = 3
"""Of the bytes that were sent: the message, its content, and what a decoder buffers."""
Answer = dict[str, Any]
"""JSON values and bytes."""
Work = Callable[..., Answer]
"""What the child does: takes bytes, returns an answer or raises DecodeError. Children get it from their parent, which
they trust."""
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""All that a child knows of its parent's environment is where Python's modules are. More arenas or threads would only
reserve memory that counts against the limit."""


class IsolatedProcess:
    """A child process for one kind of work. It starts with the first call, and again after it has died."""

    def __init__(self, work: Work, limits: Limits) -> None:
        self.work, self.limits = work, limits

    def __call__(self, *parts: bytes | None) -> Answer:
        """Do the work in the child, with these arguments.

        Raises:
            DecodeError: the work raised it, or the child died of it.
        """
        if self.child.process.poll() is not None:  # killed between two images: that is not this one's fault
            del self.child
        child = self.child
        try:
            child.connection.send(parts)
            answer = json.loads(child.connection.recv_bytes())
            answer |= {name: child.connection.recv_bytes() for name in answer.pop("binary")}
        except (EOFError, OSError):
            del self.child
            raise self.cause_of_death(child.process.wait()) from None
        if "status" in answer:
            raise DecodeError(Status(answer["status"]), answer["reason"])
        return answer

    @cached_property
    def child(self) -> "Child":
        return Child(self.work, self.limits)

    def cause_of_death(self, exit_code: int) -> DecodeError:
        match -exit_code:
            case signal.SIGALRM:
                seconds = f"{self.limits.picture_timeout_s:g} s (--picture-timeout-s)"
                return DecodeError(Status.TIMED_OUT, f"decoding took longer than {seconds}")
            case signal.SIGKILL:
                return DecodeError(Status.OUT_OF_MEMORY, "the decoder was killed, probably for its use of memory")
            case number if number in set(signal.Signals):
                return DecodeError(Status.CRASHED, f"the decoder crashed ({signal.Signals(number).name})")
        return DecodeError(Status.CRASHED, f"the decoder ended with exit code {exit_code}")


class Child:
    """A running child process and the connection to it. It ends when the connection is closed."""

    def __init__(self, work: Work, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self.connection: Connection = Connection(ours.detach())
        self.connection.send((work, limits))

    def __del__(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


CHILDREN = threading.local()


def isolated(work: Work, limits: Limits) -> IsolatedProcess:
    """This thread's process for this work. The last one is kept: tasks that follow each other do the same work."""
    process: IsolatedProcess | None = getattr(CHILDREN, "process", None)
    if process is None or (process.work, process.limits) != (work, limits):
        process = CHILDREN.process = IsolatedProcess(work, limits)
    return process


def serve(connection: Connection) -> None:
    """The child: answer until the parent closes the connection."""
    work, limits = connection.recv()
    at_start = memory_bytes()
    while True:
        parts = connection.recv()
        received = sum(len(part) for part in parts if part is not None)
        limit_memory(at_start + limits.decode_memory_bytes + COPIES * received)
        # Nobody handles SIGALRM here, so the kernel ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_REAL, limits.picture_timeout_s)
        try:
            answer = work(*parts)
        except DecodeError as error:
            answer = {"status": error.status, "reason": str(error)}
        except MemoryError:
            answer = {
                "status": Status.OUT_OF_MEMORY,
                "reason": "the image does not fit into memory (--decode-memory-mb)",
            }
        signal.setitimer(signal.ITIMER_REAL, 0)
        binary = {name: value for name, value in answer.items() if isinstance(value, bytes)}
        told = {name: value for name, value in answer.items() if name not in binary} | {"binary": list(binary)}
        connection.send_bytes(json.dumps(told).encode())
        for value in binary.values():
            connection.send_bytes(value)


def memory_bytes() -> int:
    """The address space of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


def limit_memory(limit_bytes: int) -> None:
    """Let allocations fail beyond so many bytes of address space. Only Linux keeps to such a limit."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, resource.RLIM_INFINITY))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, ConnectionError):
        sys.exit()
