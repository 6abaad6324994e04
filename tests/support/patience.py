"""How long tests wait for what other processes do. A busy machine is no failure."""

from collections.abc import Callable
from subprocess import Popen
from typing import Any

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

PATIENCE_S = 400
PATIENCE: dict[str, Any] = {"stop": stop_after_delay(PATIENCE_S), "wait": wait_fixed(2), "reraise": True}


def wait_until(happened: Callable[[], Any], job: Popen[Any] | None = None, interval_s: float = 0.1) -> Any:
    """Wait for something to happen, while a job runs if one is given; returns what ``happened`` returned."""

    def look() -> Any:
        found = happened()
        assert found or job is None or job.poll() is None, f"the job ended before: {job.communicate()}"
        return found

    again = retry_if_result(lambda found: not found)
    return Retrying(stop=stop_after_delay(PATIENCE_S), wait=wait_fixed(interval_s), retry=again)(look)
