"""Rows of shards that changed go, all others stay."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.corpus.sources import Corpus
from cluster.output.changes import Changes, find_changes, note_versions
from cluster.output.folder import Output
from cluster.output.resume import scan_output
from tests.cluster.output.test_resume import corpus_of, row, write_rows


def corpus(**versions: str) -> Corpus:
    """Shards ``NAME.tar`` with these versions."""
    listed = corpus_of(*(f"{name}.tar" for name in versions))
    shards = (replace(shard, version=version) for shard, version in zip(listed.shards, versions.values(), strict=True))
    return replace(listed, shards=tuple(shards))


def names_in(output: Output) -> list[str]:
    return sorted(name for path in output.rows_files() for name in pq.read_table(path)["image_id"].to_pylist())


def first(shard: str, number: int, of: int | None = None) -> dict[str, Any]:
    """A row of the first version of a shard."""
    return row(shard, number, of, version="1")


def test_new_changed_and_lost_shards(tmp_path: Path) -> None:
    output = write_rows(
        tmp_path,
        [first("a.tar", 0), first("a.tar", 1, of=2), first("b.tar", 0)],
        [first("b.tar", 1, of=2), first("c.tar", 0, of=1)],
        [first("d.tar", 0, of=1)],
    )
    assert note_versions(output, corpus(a="1", b="1", c="1", d="1")) is None, "the first run"
    assert not find_changes(output, corpus(a="1", b="1", c="1", d="1"))
    untouched = (tmp_path / "rows/run_000002-0.parquet").stat().st_mtime_ns
    now = corpus(a="1", b="2", d="1", e="1", f="1")
    expected = Changes(new=2, changed=frozenset({"b.tar"}), gone=1)
    assert find_changes(output, now) == note_versions(output, now) == expected
    assert str(expected) == "2 new shards, 1 changed, 1 no longer there"
    left = scan_output(output).remaining(now)
    assert [shard.name for shard in left.shards] == ["b.tar", "e.tar", "f.tar"]
    assert names_in(output) == ["a.tar/0.jpg", "a.tar/1.jpg", "c.tar/0.jpg", "d.tar/0.jpg"]
    assert (tmp_path / "rows/run_000002-0.parquet").stat().st_mtime_ns == untouched
    assert note_versions(output, now) == Changes(0, frozenset(), 1), "once"


def test_what_comes_back_unchanged_keeps_its_rows(tmp_path: Path) -> None:
    output = write_rows(tmp_path, [first("a.tar", 0, of=1), first("b.tar", 0, of=1)])
    for versions in ({"a": "1", "b": "1"}, {"a": "1"}):
        note_versions(output, corpus(**versions))
    assert note_versions(output, corpus(a="1", b="1")) == Changes(0, frozenset(), 0)
    assert scan_output(output).shards == {"a.tar", "b.tar"}


def test_of_rows_of_two_versions_the_noted_one_counts(tmp_path: Path) -> None:
    """A run that was taken for dead may write rows of an older version after the next one."""
    output = write_rows(tmp_path, [first("a.tar", 0, of=1)], [row("a.tar", 0, of=1, version="2")])
    note_versions(output, corpus(a="2"))
    done = scan_output(output)
    assert (done.images, done.shards) == (1, {"a.tar"})
    (path,) = (path for path in done.files if pq.read_table(path).num_rows)
    assert pq.read_table(path)["shard_version"].to_pylist() == ["2"]
    assert done.files == output.rows_files()


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    output = write_rows(tmp_path, [row("a.tar", 0, of=1)])
    (tmp_path / "_shards.arrow").write_bytes(b"rubbish")
    with pytest.raises(OSError, match=r"_shards\.arrow is damaged: delete it"):
        find_changes(output, corpus(a="1"))
