"""Local files are on the disk before anything says that they count."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import open_location


def test_a_local_file_is_synced_when_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[str, int] = {}
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        synced[os.readlink(f"/proc/self/fd/{descriptor}")] = os.fstat(descriptor).st_size

    monkeypatch.setattr(os, "fsync", spy)
    file = tmp_path / "rows.parquet"
    table = pa.table({"a": list(range(1000))})
    pq.write_table(table, str(file), filesystem=open_location(str(tmp_path), "--output").arrow_fs())
    assert synced == {str(file): file.stat().st_size}
    assert pq.read_table(str(file), filesystem=open_location(str(tmp_path), "--output").arrow_fs()) == table
