"""Read tasks: together they prepare every image once, and few shards keep many CPU slots busy."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cliper.preprocess import InputSpec
from cluster.corpus.inputs import open_input
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.prepare import PREPARED_SCHEMA, Preparer
from cluster.corpus.sources import Corpus, list_corpus
from cluster.datasource import BLOCK_ROWS, CorpusDatasource
from tests.support.corpora import jpeg, sample_images, write_folder, write_tables, write_tars

PREPARE = Preparer(InputSpec(32, 16), DEFAULT_LIMITS)


def corpus_at(folder: Path) -> Corpus:
    return list_corpus(open_input(str(folder)), "auto", None)


def run_tasks(corpus: Corpus, slots: int) -> tuple[list[dict], int]:
    """The rows of all read tasks, and the bytes of images that they report."""
    reported: Counter[str] = Counter()

    def report(**counts: int) -> None:
        reported.update(counts)

    rows = []
    for task in CorpusDatasource(corpus, PREPARE, report, slots).get_read_tasks(3):
        for block in task():
            assert block.num_rows <= BLOCK_ROWS
            assert block.schema.equals(PREPARED_SCHEMA)
            rows += block.to_pylist()
    return rows, reported["bytes_read"]


@pytest.mark.parametrize("slots", [1, 2, 16])
@pytest.mark.parametrize("write", [write_tars, write_tables])
def test_tasks_share_shards_and_prepare_every_image_once(write, slots: int, tmp_path: Path) -> None:
    images = sample_images(23)
    corpus = corpus_at(write(tmp_path, images, per_shard=9))
    rows, bytes_read = run_tasks(corpus, slots)
    assert len({row["image_id"] for row in rows}) == len(rows) == 23
    assert {row["status"] for row in rows} == {"ok"}
    assert bytes_read == sum(map(len, images.values()))
    last = {row["shard"]: row["shard_images"] for row in rows if row["shard_images"] is not None}
    assert sorted(last.values()) == [5, 9, 9], "a shard's last image says how many it has"


def test_images_that_are_done_are_read_but_not_prepared_again(tmp_path: Path) -> None:
    corpus = corpus_at(write_tars(tmp_path, sample_images(6), per_shard=6))
    done = frozenset({"00000.tar/00001.jpg", "00000.tar/00004.jpg"})
    rows, _ = run_tasks(replace(corpus, shards=tuple(replace(shard, done=done) for shard in corpus.shards)), slots=2)
    assert {row["image_id"] for row in rows} == {f"00000.tar/0000{index}.jpg" for index in (0, 2, 3, 5)}


@pytest.mark.parametrize(
    ("files", "slots", "sizes"), [(150, 1, [64, 64, 22]), (150, 10, [7] * 21 + [3]), (3, 9, [1] * 3)]
)
def test_image_files_are_shared_out(files: int, slots: int, sizes: list[int], tmp_path: Path) -> None:
    corpus = corpus_at(write_folder(tmp_path, {f"{i:03}.jpg": jpeg(i % 3) for i in range(files)}))
    groups = CorpusDatasource(corpus, PREPARE, print, slots).groups()
    assert [len(group) for group in groups] == sizes
    assert tuple(shard for group in groups for shard in group) == corpus.shards


@pytest.mark.parametrize(("shards", "slots", "parts"), [(1, 1, 2), (1, 64, 8), (5, 10, 4), (40, 10, 1)])
def test_parts_of_a_shard(shards: int, slots: int, parts: int, tmp_path: Path) -> None:
    corpus = corpus_at(write_tars(tmp_path, sample_images(shards), per_shard=1))
    groups = CorpusDatasource(corpus, PREPARE, print, slots).groups()
    assert len(groups) == shards * parts
    assert Counter((shard.name, shard.part) for group in groups for shard in group).total() == shards * parts
