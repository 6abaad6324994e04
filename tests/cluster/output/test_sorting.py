"""Sorting by runs on disk."""

import errno
from collections.abc import Iterator
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.output import sorting
from cluster.output.sorting import sorted_by_id

PAYLOAD = pa.list_(pa.struct([("text", pa.string()), ("number", pa.int32())]))
IDS = st.lists(st.text(max_size=3), max_size=40)


def batches(image_ids: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(image_ids), rows):
        part = image_ids[start : start + rows]
        payload = [[{"text": image_id * 5, "number": number}] * len(image_id) for number, image_id in enumerate(part)]
        yield pa.record_batch({"image_id": pa.array(part, pa.string()), "payload": pa.array(payload, PAYLOAD)})
        yield pa.record_batch({"image_id": pa.array([], pa.string()), "payload": pa.array([], PAYLOAD)})


@given(image_ids=IDS, rows=st.integers(1, 9), run_bytes=st.integers(1, 2000), head_bytes=st.integers(1, 300))
def test_rows_come_in_order_once_and_whole(image_ids: list[str], rows: int, run_bytes: int, head_bytes: int) -> None:
    with patch.multiple(sorting, RUN_BYTES=run_bytes, HEAD_BYTES=head_bytes):
        found = [row for table in sorted_by_id(batches(image_ids, rows)) for row in table.to_pylist()]
    assert [row["image_id"] for row in found] == sorted(set(image_ids), key=lambda image_id: image_id.encode())
    for row in found:
        assert [entry["text"] for entry in row["payload"]] == [row["image_id"] * 5] * len(row["image_id"])


def test_what_ends_the_stream_is_not_hidden() -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from batches(["a", "b"], 1)
        raise OSError(errno.EIO, "the storage failed")

    with pytest.raises(OSError, match="the storage failed"):
        list(sorted_by_id(broken()))
