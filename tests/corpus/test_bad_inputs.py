"""Every bad input ends in a row with a status and a sentence that names it; the others are read as ever."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cliper.preprocess import InputSpec
from cluster.corpus.inputs import open_input
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import list_corpus, read_shard
from cluster.datasource import read_blocks
from cluster.storage import open_location
from schemas.rows import Status
from tests.corpus.images import odd_images
from tests.corpus.shards import Expected, odd_tables, odd_tars
from tests.support.corpora import jpeg

IMAGES, TARS = odd_images(), odd_tars()


def rows_of(folder: Path, name: str, content: bytes) -> list[dict[str, str]]:
    """What reading and preparing make of a file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    corpus = list_corpus(open_input(str(folder)), "auto", open_location("/nowhere", "--output"))
    prepare = Preparer(InputSpec(16, 16), DEFAULT_LIMITS)
    rows = [row for table in read_blocks(corpus, prepare, report=lambda **_: None) for row in table.to_pylist()]
    assert [row["shard_images"] for row in rows] == [None] * (len(rows) - 1) + [len(rows)] * bool(rows)
    return rows


def check(folder: Path, name: str, content: bytes, expected: Expected) -> None:
    rows = rows_of(folder, name, content)
    assert {row["image_id"]: row["status"] for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        assert (row["error"] is None) == (row["status"] == Status.OK)
        assert row["error"] is None or name in row["error"]
        assert row["error"] is None or "\n" not in row["error"]


def test_there_are_many_kinds() -> None:
    bad = [status for _, status in IMAGES.values() if status != Status.OK]
    assert len(IMAGES) + len(TARS) >= 50
    assert len(bad) >= 15


@pytest.mark.parametrize("name", IMAGES)
def test_image(name: str, tmp_path: Path) -> None:
    content, status = IMAGES[name]
    check(tmp_path, name, content, {name: status})


@pytest.mark.parametrize("name", TARS)
def test_tar(name: str, tmp_path: Path) -> None:
    check(tmp_path, name, *TARS[name])


def test_a_tar_of_100_000_members(tmp_path: Path) -> None:
    members, image = 100_000, jpeg(1, (1, 1))
    with tarfile.open(tmp_path / "many.tar", "w") as archive:
        for number in range(members):
            archive.addfile(tarfile.TarInfo(f"{number:06}.jpg"))
        last = tarfile.TarInfo("last.jpg")
        last.size = len(image)
        archive.addfile(last, io.BytesIO(image))
    corpus = list_corpus(open_input(str(tmp_path)), "auto", open_location("/nowhere", "--output"))
    statuses = Counter(record.status for record in read_shard(corpus, corpus.shards[0]))
    assert statuses == {Status.EMPTY: members, Status.OK: 1}


def test_a_small_table_that_repeats_a_large_value(tmp_path: Path) -> None:
    value, rows = bytes(20_000_000), 100
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value], pa.large_binary()))
    table = pa.table({"image": repeated, "other": range(rows)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    corpus = list_corpus(open_input(str(tmp_path)), "auto", open_location("/nowhere", "--output"))
    before, most, found = pa.total_allocated_bytes(), 0, 0
    for record in read_shard(corpus, corpus.shards[0]):
        assert record.data == value
        most, found = max(most, pa.total_allocated_bytes() - before), found + 1
    assert found == rows
    assert most < 5 * len(value)


@pytest.mark.parametrize("name", [
    "damaged", "cut", "nothing", "page", "no-rows", "nulls", "many-nulls", "no-more-rows", "claims", "no-image-column",
    "a-good",
])  # fmt: skip
def test_table(name: str, tmp_path: Path) -> None:
    content, expected = odd_tables(tmp_path)[f"{name}.parquet"]
    if name == "no-image-column":  # of a corpus's first table the request is refused
        (tmp_path / "in").mkdir()
        good, rows = odd_tables(tmp_path)["a-good.parquet"]
        (tmp_path / "in" / "a-good.parquet").write_bytes(good)
        found = rows_of_two(tmp_path / "in", f"{name}.parquet", content)
        assert found == rows | expected
        return
    check(tmp_path / "in", f"{name}.parquet", content, expected)


def rows_of_two(folder: Path, name: str, content: bytes) -> Expected:
    (folder / name).write_bytes(content)
    corpus = list_corpus(open_input(str(folder)), "auto", open_location("/nowhere", "--output"))
    return {record.image_id: Status(record.status) for shard in corpus.shards for record in read_shard(corpus, shard)}
