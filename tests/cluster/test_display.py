"""What a user sees while a job runs."""

from collections import Counter
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from cluster.corpus.inputs import open_input
from cluster.corpus.sources import list_corpus
from cluster.display import Size, State, bottleneck, in_words
from tests.support.corpora import sample_images, write_folder, write_tars

NOON = datetime(2026, 3, 1, 12, 0)
FOLDER, SHARDS = Size(images=1000, shards=1000, parts=8), Size(images=None, shards=40, parts=80)


@pytest.mark.parametrize(
    ("size", "counts", "sentence"),
    [
        (FOLDER, {"ok": 5}, "5 of 1,000 images labelled"),
        (FOLDER, {"ok": 98, "failed": 2, "labelling_ms": 400_000},
         "100 of 1,000 images labelled, 2 failed, 0.25 a second, about 1 h left (until 13:00)"),
        (SHARDS, {"ok": 7, "labelling_ms": 3_500}, "7 images labelled, 2 a second"),
        (SHARDS, {"ok": 500, "images_read": 1200, "parts_read": 20, "labelling_ms": 25_000},
         "500 of about 4,800 images labelled, 10 of 40 shards read, 20 a second, about 3 min 35 s left (until 12:03)"),
        (SHARDS, {"ok": 4800, "images_read": 4800, "parts_read": 80, "labelling_ms": 240_000},
         "4,800 of 4,800 images labelled, 40 of 40 shards read, 20 a second, about 0 s left (until 12:00)"),
        (SHARDS, {"ok": 9, "images_read": 5, "parts_read": 80},  # an image that was labelled again counts again
         "9 of 9 images labelled, 40 of 40 shards read"),
        (FOLDER, {"ok": 1, "labelling_ms": 100_000},
         "1 of 1,000 images labelled, 0.01 a second, about 1 d 3 h left (until 2026-03-02 15:45)"),
    ],
)  # fmt: skip
def test_the_state_is_a_sentence(size: Size, counts: dict[str, int], sentence: str) -> None:
    assert State(Counter(counts), size).sentence(NOON) == sentence
    waiting = State(Counter(counts), size, "waiting for storage")
    assert waiting.sentence(NOON) == f"{sentence}: waiting for storage"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (3661, "1 h 1 min"), (200_000, "2 d 7 h")],
)
def test_durations_have_two_units(seconds: float, words: str) -> None:
    assert in_words(timedelta(seconds=seconds)) == words


@pytest.mark.parametrize(
    ("spent", "on_gpu", "words"),
    [
        ({}, True, ""),
        ({"busy_ms": 90, "idle_ms": 10, "read_ms": 1000}, True, "waiting for the GPU"),
        ({"busy_ms": 90, "idle_ms": 10, "read_ms": 1000}, False, "waiting for the models"),
        ({"busy_ms": 50, "idle_ms": 50}, True, ""),
        ({"busy_ms": 50, "idle_ms": 50, "read_ms": 30, "prepare_ms": 20}, True, "waiting for storage"),
        ({"busy_ms": 50, "idle_ms": 50, "read_ms": 20, "prepare_ms": 30}, True, "waiting for the decoding of images"),
    ],
)
def test_the_bottleneck_has_a_name(spent: dict[str, int], on_gpu: bool, words: str) -> None:
    assert bottleneck(Counter(spent), on_gpu) == words


@pytest.mark.parametrize("write", [write_folder, lambda folder, images: write_tars(folder, images, 2)])
def test_images_of_folders_are_counted_and_those_of_shards_are_not(write: object, tmp_path: Path) -> None:
    assert callable(write)
    corpus = list_corpus(open_input(str(write(tmp_path / "in", sample_images(4)))), "auto", None)
    expected = 4 if corpus.format == "folder" else None
    assert Size.of(corpus, 5) == Size(expected, len(corpus.shards), 5)


def test_work_time_is_split_into_busy_and_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.actors import WorkTime

    clock = count(100)
    monkeypatch.setattr("cluster.actors.time.monotonic", lambda: next(clock))
    worked = WorkTime()  # every look at the clock is a second
    with worked.working():  # 100
        with worked.working():  # 101: busy 1
            pass  # 102: busy 2
        assert worked.take_ms() == {"busy_ms": 3000, "idle_ms": 0}  # 103
    # 104: busy 1
    with worked.working():  # 105: idle 1
        assert worked.take_ms() == {"busy_ms": 2000, "idle_ms": 1000}  # 106
