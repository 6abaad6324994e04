"""Rows in the order of their image ids, more of them than memory holds: sorted runs on disk, then merged."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

KEY = "image_id"
RUN_BYTES = 64 * 1024**2
"""Rows that are sorted in memory at a time."""
HEAD_BYTES = 256 * 1024
"""What the merge has of each run in memory."""


def in_order(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Rows in the order of their image ids (as UTF-8 bytes), each image once.

    In memory are `RUN_BYTES` of rows, then `HEAD_BYTES` for each `RUN_BYTES` that there are.

    Args:
        rows: a stream, all with the same columns; ``image_id`` must be one.

    Raises:
        OSError: no room for temporary files, or whatever ended the stream of rows.
    """
    with tempfile.TemporaryDirectory(prefix="sort-") as folder, contextlib.ExitStack() as stack:
        # DuckDB's own sort ran out of its 256 MB with 50,000 rows of masks, although it can spill to disk. This one
        # takes 609 MB for a million rows.
        paths = []
        for number, run in enumerate(gather(rows)):
            paths.append(Path(folder) / f"{number:06}.arrow")
            write_run(run.sort_by(KEY), paths[-1])
        runs = [read_run(stack.enter_context(pa.OSFile(str(path)))) for path in paths]
        yield from without_repetitions(merge(runs))


def gather(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of about `RUN_BYTES`."""
    batches: list[pa.RecordBatch] = []
    size = 0
    for batch in rows:
        if not len(batch):
            continue
        batches.append(batch)
        size += batch.nbytes
        if size >= RUN_BYTES:
            yield pa.Table.from_batches(batches)
            batches, size = [], 0
    if batches:
        yield pa.Table.from_batches(batches)


def write_run(table: pa.Table, path: Path) -> None:
    rows_at_a_time = max(1, table.num_rows * HEAD_BYTES // max(table.nbytes, 1))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows_at_a_time)


def read_run(file: pa.OSFile) -> Iterator[pa.Table]:
    with pa.ipc.open_stream(file) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def merge(runs: list[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Merge sorted runs: whatever is not beyond the end of any run's head is next."""
    heads = [(next(run), run) for run in runs]
    while heads:
        bound = min(head[KEY][-1].as_py() for head, _ in heads)
        ready, left = [], []
        for head, run in heads:
            count = pc.sum(pc.less_equal(head[KEY], bound)).as_py()
            ready.append(head.slice(0, count))
            head = head.slice(count) if count < len(head) else next(run, None)
            if head is not None:
                left.append((head, run))
        yield pa.concat_tables(ready).sort_by(KEY)
        heads = left


def without_repetitions(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Of neighbouring rows with the same ``image_id`` the first: two runs may have labelled an image
    (`cluster.output.lease`)."""
    last = None
    for table in tables:
        ids = table[KEY].combine_chunks()
        before = pa.concat_arrays([pa.array([last], ids.type), ids[:-1]])
        last = ids[-1].as_py()
        yield table.filter(pc.fill_null(pc.not_equal(ids, before), True))
