"""Rows of shards that changed go, all others stay."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.corpus.sources import Corpus
from cluster.output.changes import Changes, find_changes, note_versions, write_versions
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


def test_new_changed_and_lost_shards(tmp_path: Path) -> None:
    output = write_rows(
        tmp_path,
        [row("a.tar", 0), row("a.tar", 1, of=2), row("b.tar", 0)],
        [row("b.tar", 1, of=2), row("c.tar", 0, of=1)],
        [row("d.tar", 0, of=1)],
    )
    assert note_versions(output, corpus(a="1", b="1", c="1", d="1")) is None, "the first run"
    assert not find_changes(output, corpus(a="1", b="1", c="1", d="1"))
    untouched = (tmp_path / "run_000002-0.parquet").stat().st_mtime_ns
    now = corpus(a="1", b="2", d="1", e="1", f="1")
    expected = Changes(new=2, changed=frozenset({"b.tar"}), gone=1)
    assert find_changes(output, now) == note_versions(output, now) == expected
    assert str(expected) == "2 new shards, 1 changed, 1 no longer there"
    assert names_in(output) == ["a.tar/0.jpg", "a.tar/1.jpg", "c.tar/0.jpg", "d.tar/0.jpg"]
    assert (tmp_path / "run_000002-0.parquet").stat().st_mtime_ns == untouched
    left = scan_output(output).remaining(now)
    assert [shard.name for shard in left.shards] == ["b.tar", "e.tar", "f.tar"]
    assert note_versions(output, now) == Changes(0, frozenset(), 1), "once"


def test_what_comes_back_unchanged_keeps_its_rows(tmp_path: Path) -> None:
    output = write_rows(tmp_path, [row("a.tar", 0, of=1), row("b.tar", 0, of=1)])
    note_versions(output, corpus(a="1", b="1"))
    note_versions(output, corpus(a="1"))
    assert note_versions(output, corpus(a="1", b="1")) == Changes(0, frozenset(), 0)
    assert len(names_in(output)) == 2


@pytest.mark.parametrize("written", [0, 1])
def test_a_crash_between_the_steps_loses_nothing(written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write marks what is about to be deleted, the second one notes the new versions."""
    output, later = write_rows(tmp_path, [row("a.tar", 0, of=1), row("b.tar", 0, of=1)]), corpus(a="2", b="1")
    note_versions(output, corpus(a="1", b="1"))
    left = iter(range(written))

    def write_and_crash(*arguments: Any) -> None:
        next(left)
        write_versions(*arguments)

    monkeypatch.setattr("cluster.output.changes.write_versions", write_and_crash)
    with pytest.raises(StopIteration):
        note_versions(output, later)
    monkeypatch.undo()
    assert names_in(output) == ["a.tar/0.jpg", "b.tar/0.jpg"][written:]
    assert find_changes(output, later).changed == {"a.tar"}
    note_versions(output, later)
    assert [shard.name for shard in scan_output(output).remaining(later).shards] == ["a.tar"]


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    output = write_rows(tmp_path, [row("a.tar", 0, of=1)])
    (tmp_path / "_shards.arrow").write_bytes(b"rubbish")
    with pytest.raises(OSError, match=r"_shards\.arrow is damaged: delete it"):
        find_changes(output, corpus(a="1"))
