"""What is done is found again from the rows alone."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliper.preprocess import InputSpec
from cluster.corpus.readers import Shard
from cluster.corpus.sources import Corpus
from cluster.output.folder import Output
from cluster.output.resume import forget_transient_failures, scan_output
from cluster.output.summary import count_rows
from cluster.storage import open_location
from schemas.rows import ROW_SCHEMA, Status


def row(
    shard: str, number: int, of: int | None = None, status: str = Status.OK, version: str | None = None
) -> dict[str, Any]:
    image_id = f"{shard}/{number}.jpg"
    nothing = dict.fromkeys(("error", "class_scores", "annotations"))
    known = {"image_id": image_id, "uri": image_id, "shard": shard, "shard_version": version, "shard_images": of}
    return nothing | known | {"status": status, "width": 60, "height": 40}


def write_rows(folder: Path, *files: list[dict[str, Any]], run: str = "run", committed: bool = True) -> Output:
    metadata = ROW_SCHEMA.with_metadata({b"cliper": b"{}"})
    (folder / "rows").mkdir(exist_ok=True)
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows, schema=metadata), folder / f"rows/{run}_{number:06}-0.parquet")
        if committed:
            (folder / "_checkpoint" / run).mkdir(parents=True, exist_ok=True)
            (folder / "_checkpoint" / run / f"{run}_{number:06}.parquet").touch()
    return Output(open_location(str(folder), "--output"))


def corpus_of(*names: str) -> Corpus:
    return Corpus(open_location("/input", "--input"), "tar", tuple(Shard(name, f"/input/{name}") for name in names))


def test_a_shard_is_complete_when_all_its_images_have_rows_in_whatever_files(tmp_path: Path) -> None:
    output = write_rows(
        tmp_path,
        [row("a.tar", 0), row("a.tar", 2, of=3), row("b.tar", 0)],
        [row("a.tar", 1), row("c.tar", 1, of=2)],
    )
    done = scan_output(output)
    assert done.images == 5
    assert done.shards == {"a.tar"}
    assert done.ids == {"b.tar": {"b.tar/0.jpg"}, "c.tar": {"c.tar/1.jpg"}}
    left = done.remaining(corpus_of("a.tar", "b.tar", "c.tar", "d.tar")).shards
    assert [(shard.name, set(shard.done)) for shard in left] == [
        ("b.tar", {"b.tar/0.jpg"}), ("c.tar", {"c.tar/1.jpg"}), ("d.tar", set()),
    ]  # fmt: skip


def test_nothing_is_done_in_a_new_output(tmp_path: Path) -> None:
    done = scan_output(write_rows(tmp_path))
    assert (done.images, done.shards, done.ids) == (0, frozenset(), {})
    assert done.remaining(corpus_of("a.tar")) == corpus_of("a.tar")


@given(st.data())
def test_done_and_left_are_the_whole_corpus(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    rows = [
        row(f"{shard}.tar", number, of=size if number == size - 1 else None)
        for shard, size in enumerate(sizes)
        for number in range(size)
    ]
    written = data.draw(st.lists(st.sampled_from(rows), unique_by=lambda r: r["image_id"]))
    cut = data.draw(st.integers(0, len(written)))
    output = write_rows(tmp_path_factory.mktemp("rows"), written[:cut], written[cut:])
    left = scan_output(output).remaining(corpus_of(*(f"{shard}.tar" for shard in range(len(sizes)))))
    still_read = {r["image_id"] for r in rows for shard in left.shards if r["shard"] == shard.name} - {
        image_id for shard in left.shards for image_id in shard.done
    }
    assert still_read == {r["image_id"] for r in rows} - {r["image_id"] for r in written}


@given(st.data())
def test_rows_that_two_runs_wrote_are_deleted_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A run that seemed dead wrote while the next one had begun: no image is doubled, none counts that has no row."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = [
        row(f"{shard}.tar", number, of=size if number == size - 1 else None)
        for shard, size in enumerate(sizes)
        for number in range(size)
    ]
    folder = tmp_path_factory.mktemp("rows")
    written = [data.draw(st.lists(st.sampled_from(rows), unique_by=lambda r: r["image_id"])) for _ in range(2)]
    for run, its_rows in enumerate(written):
        cut = data.draw(st.integers(0, len(its_rows)))
        output = write_rows(folder, its_rows[:cut], its_rows[cut:], run=f"run{run}")
    images = {r["image_id"] for its_rows in written for r in its_rows}
    done = scan_output(output)
    kept = [name for path in output.rows_files() for name in pq.read_table(path)["image_id"].to_pylist()]
    assert sorted(kept) == sorted(images)
    assert done.images == len(images)
    by_shard = {name: {r["image_id"] for r in rows if r["shard"] == name} for name in (r["shard"] for r in rows)}
    assert done.shards == {name for name, ids in by_shard.items() if ids <= images}


def test_a_file_that_a_power_failure_left_empty_does_not_count(tmp_path: Path) -> None:
    output = write_rows(tmp_path, [row("a.tar", 0, of=1)], [row("b.tar", 0, of=1)], [row("c.tar", 0, of=1)])
    (tmp_path / "rows/run_000001-0.parquet").write_bytes(b"")
    (tmp_path / "rows/run_000002-0.parquet").write_bytes((tmp_path / "rows/run_000000-0.parquet").read_bytes()[:-20])
    with pytest.raises(OSError, match=r"run_000001-0\.parquet is damaged"):
        count_rows(output, output.rows_files(), InputSpec(336, 16))
    done = scan_output(output)
    assert (done.images, done.shards) == (1, {"a.tar"})
    assert count_rows(output, output.rows_files(), InputSpec(336, 16)).images == 1


def test_transient_failures_are_forgotten_and_nothing_else(tmp_path: Path) -> None:
    output = write_rows(
        tmp_path,
        [row("a.tar", 0), row("a.tar", 1, status=Status.TIMED_OUT), row("a.tar", 2, of=3, status=Status.TRUNCATED)],
        [row("b.tar", 0, of=1, status=Status.FORBIDDEN)],
        [row("c.tar", 0, of=1)],
    )
    untouched = (tmp_path / "rows/run_000002-0.parquet").stat().st_mtime_ns
    assert forget_transient_failures(output) == 2
    assert (tmp_path / "rows/run_000002-0.parquet").stat().st_mtime_ns == untouched
    done = scan_output(output)
    assert (done.images, done.shards) == (3, {"c.tar"})
    assert done.ids == {"a.tar": {"a.tar/0.jpg", "a.tar/2.jpg"}}
    assert {path.name for path in (tmp_path / "rows").glob("*.parquet")} == {
        f"run_{number:06}-0.parquet" for number in range(3)
    }
    schema = pq.read_schema(tmp_path / "rows/run_000000-0.parquet")
    assert schema.metadata[b"cliper"] == b"{}"
    assert schema.remove_metadata().equals(ROW_SCHEMA)


def test_a_finished_output_that_is_opened_again_keeps_its_rows(tmp_path: Path) -> None:
    output = write_rows(tmp_path, [row("a.tar", 0, of=1)])
    output.finish(output.rows_files())
    output.reopen()
    write_rows(tmp_path, [row("b.tar", 0, of=1)], run="killed", committed=False)
    output.recover()
    assert not output.is_finished()
    assert [Path(path).name for path in output.rows_files()] == ["run_000000-0.parquet"]
    output.finish(output.rows_files())
    assert not (tmp_path / "_checkpoint").exists()
