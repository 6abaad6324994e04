"""Processes that die or hang are told with what they did."""

import time

from cluster.progress import ProgressCounter


def test_images_of_a_process_that_died_are_known() -> None:
    counter = ProgressCounter(stall_timeout_s=600)
    assert counter.begin(["a", "b"], "process 1 on h") == [0, 0]
    counter.end(["b"])
    assert counter.begin(["a", "b"], "process 2 on h") == [1, 0]
    assert counter.begin(["a"], "process 3 on h") == [2]
    _, lost = counter.get()
    assert lost == [
        "The labelling process 1 on h died and was replaced; it was busy with a.",
        "The labelling process 2 on h died and was replaced; it was busy with a.",
    ]


def test_a_process_without_progress_is_told_once() -> None:
    counter = ProgressCounter(stall_timeout_s=0.01)
    counter.begin(["a"], "process 1 on h")
    time.sleep(0.05)
    expected = ["The labelling process 1 on h made no progress for 0.01 s and is replaced; it was busy with a."]
    assert counter.get()[1] == expected
    counter.begin(["a"], "process 2 on h")
    counter.end(["a"])
    assert counter.get()[1] == expected


def test_the_time_of_labelling_begins_with_the_first_image() -> None:
    counter = ProgressCounter(stall_timeout_s=600)
    assert counter.get() == ({}, [])
    counter.begin(["a"], "process 1 on h")
    time.sleep(0.05)
    counter.end(["a"])
    counts, _ = counter.get()
    assert counts["labelling_ms"] >= 50
