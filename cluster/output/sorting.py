"""Rows sorted by image id, when they do not fit into memory: sorted runs on disk, then merged.

Two jobs need it. `jobs.export` writes COCO files with images sorted by id. `jobs.filter` writes its table and its tar
shards in the same order. All other readers take rows in the order of the files.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cluster.output.rows import first_rows

KEY = "image_id"
RUN_BYTES = 64 * 1024**2
"""Size of a run. Each run is sorted in memory."""
HEAD_BYTES = 256 * 1024
"""Size of the part of each run that the merge holds in memory."""


def sorted_by_id(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Sort rows by image id (as UTF-8 bytes). Each image appears once.

    The memory needed is `RUN_BYTES` while reading, then `HEAD_BYTES` per run while merging.

    Args:
        rows: a stream of batches with the same columns, among them ``image_id``.

    Raises:
        OSError: the disk is full, or the stream of rows failed.
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
    """Gather batches into tables of about `RUN_BYTES`."""
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
    """Merge sorted runs. The rows up to the smallest last id of all heads come next."""
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
    """Keep the first row of each image, in tables whose rows with the same ``image_id`` are neighbours."""
    last: set[str] = set()
    for table in tables:
        image_ids = table[KEY].to_pylist()
        yield table.filter(pa.array(first_rows(image_ids, last)))
        last = {image_ids[-1]}
