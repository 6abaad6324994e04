"""How long tests wait for what other processes do. A busy machine is no failure."""

import time
from collections.abc import Callable
from subprocess import Popen
from typing import Any

from tenacity import stop_after_delay, wait_fixed

PATIENCE_S = 400
PATIENCE: dict[str, Any] = {"stop": stop_after_delay(PATIENCE_S), "wait": wait_fixed(2), "reraise": True}


def wait_until(happened: Callable[[], Any], job: Popen[Any] | None = None, interval_s: float = 0.1) -> Any:
    """Wait for something to happen, while a job runs if one is given; returns what ``happened`` returned."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := happened()):
        assert job is None or job.poll() is None, f"the job ended before: {job.communicate()}"
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(interval_s)
    return found
