"""A process that makes no progress ends itself, so that Ray replaces it."""

import contextlib
import faulthandler
import threading
import time
from collections.abc import Iterator


class Watchdog:
    """Ends the process if a piece of work takes too long, after the stacks of all threads were written to stderr.

    Python's faulthandler keeps the time: its thread needs no interpreter, so that work that hangs inside C code is
    ended too. It has one timer, which is set to the piece of work that began first.

    Args:
        timeout_s: longest time for a piece of work, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.lock = threading.Lock()
        self.began: dict[object, float] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The block is a piece of work. Other threads may do others at the same time."""
        work = object()
        with self.lock:
            self.began[work] = time.monotonic()
            self.set_timer()
        try:
            yield
        finally:
            with self.lock:
                del self.began[work]
                self.set_timer()

    def set_timer(self) -> None:
        if self.began:
            left_s = min(self.began.values()) + self.timeout_s - time.monotonic()
            faulthandler.dump_traceback_later(max(left_s, 0.001), exit=True)
        else:
            faulthandler.cancel_dump_traceback_later()
