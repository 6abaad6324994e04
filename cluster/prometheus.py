"""The job's own Prometheus series, beside Ray's; `cluster/deploy/monitoring` shows them.

Ray puts ``ray_`` before these names and ``_total`` after them, and adds labels for node, worker and session. Workers
report to their node, which keeps the sums after they die. Seconds and images are counters, not histograms: Ray moves
every observation of a histogram to the middle of its bucket, while the quotient of two counters is exact.
"""

import logging
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal, TypeVar, get_args

from ray.util.metrics import Counter

logger = logging.getLogger(__name__)

IMAGES = Counter("cliper_images", "Images that left the labelling actors.", ("status",))
STAGE_SECONDS = Counter("cliper_stage_seconds", "Seconds that threads spent in a stage.", ("stage",))
STAGE_IMAGES = Counter("cliper_stage_images", "Images that went through a stage.", ("stage",))
READ_BYTES = Counter("cliper_read_bytes", "Bytes of image files that were read.")
SLOW_PROCESSES = Counter("cliper_slow_processes", "Labelling processes that are slower than they could be.")
MODEL_BATCHES = Counter("cliper_model_batches", "Batches that went through the models.")

Stage = Literal["read", "prepare", "label", "encode"]
"""Storage to bytes, bytes to what the models read, that to runs of label maps, runs to rows."""
SPENT: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
"""Seconds that this process spent in each stage."""
Item = TypeVar("Item")


def add(counter: Counter, value: float, **tags: str) -> None:
    """Add to a counter. An error is logged and not raised: no count is worth a job."""
    if not value:
        return  # Ray refuses to add 0
    try:
        counter.inc(value, tags)
    except Exception:
        logger.warning("a metric could not be counted", exc_info=True)


def add_images(statuses: Iterable[str]) -> None:
    """Count images by status."""
    for status, count in Tally(map(str, statuses)).items():
        add(IMAGES, count, status=status)


def add_stage(stage: Stage, images: int, seconds: float) -> None:
    add(STAGE_IMAGES, images, stage=stage)
    add(STAGE_SECONDS, seconds, stage=stage)
    SPENT[stage] += seconds


@contextmanager
def timed_stage(stage: Stage, images: int) -> Iterator[None]:
    """Count the time that the block takes."""
    started = perf_counter()
    yield
    add_stage(stage, images, perf_counter() - started)


def timed_items(stage: Stage, items: Iterable[Item]) -> Iterator[Item]:
    """The same items. At the end, the time that it took to get them is counted, without what was done with them."""
    count, seconds, started = 0, 0.0, perf_counter()
    for item in items:
        seconds += perf_counter() - started
        count += 1
        yield item
        started = perf_counter()
    add_stage(stage, count, seconds + perf_counter() - started)
