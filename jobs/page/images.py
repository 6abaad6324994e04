"""Read labelled images again: from the job's input, or from the addresses in the rows."""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cliper.files import STORAGE_ERRORS, storage_problem
from cluster.corpus.columns import Columns, image_bytes, image_column
from cluster.corpus.decode import decode_to_bytes
from cluster.corpus.isolation import isolated
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.readers import Record, Shard, checked
from cluster.corpus.sources import Corpus, file_address, format_of, read_shard
from cluster.storage import Location, open_location
from jobs.page.samples import rows_at
from schemas.errors import DecodeError

READERS = 4
"""Files that are read at a time. Each reader has one decoded image in memory."""

Row = dict[str, Any]
Make = Callable[[Row, Image.Image], dict[str, Any]]


class Unreadable(NamedTuple):
    """An image that cannot be shown, and why."""

    image_id: str
    reason: str


def open_images(address: str) -> Location:
    """The folder or prefix to read images from. A single file stands for its folder.

    Raises:
        RequestError: it does not exist or cannot be read.
    """
    location = open_location(address, "--images")
    try:
        is_file = location.fs.info(location.path)["type"] == "file"
    except STORAGE_ERRORS as error:
        raise location.refusal(error, "read") from error
    return replace(location, path=posixpath.dirname(location.path)) if is_file else location


def read_images(
    rows: Sequence[Row], images: Location | None, make: Make, column: str | None = None
) -> tuple[list[Row], list[Unreadable]]:
    """Read and decode the images of rows with status ok. Every file is read once, and no further than needed.

    Args:
        rows: rows with status ok.
        images: the job's input. None reads from each row's ``uri``.
        make: converts a row and its RGB image. It is called from several threads.
        column: the column with the images, if the job was told one (`cluster.corpus.columns.Columns.image`).

    Returns:
        The converted images in the order of the rows, and the images that can no longer be read or decoded.
    """
    by_file: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_file[row["shard"] if images else file_address(row["shard"], row["uri"])].append(row)
    results: dict[str, Row | Unreadable] = {}
    with ThreadPoolExecutor(READERS) as readers:
        for group in readers.map(partial(read_group, images=images, make=make, column=column), by_file.items()):
            results |= group
    in_order = [results[row["image_id"]] for row in rows]
    unreadable = [result for result in in_order if isinstance(result, Unreadable)]
    return [result for result in in_order if not isinstance(result, Unreadable)], unreadable


def read_group(
    group: tuple[str, Sequence[Row]], images: Location | None, make: Make, column: str | None
) -> dict[str, Row | Unreadable]:
    """The images of one file, by id."""
    address, rows = group
    left = {row["image_id"]: row for row in rows}
    results: dict[str, Row | Unreadable] = {}
    reason = "it is no longer there"
    try:
        location = images / address if images else open_location(address, "uri")
        for record in find_records(location, rows, column):
            if record.image_id in left:
                results[record.image_id] = convert(record, left.pop(record.image_id), make)
            elif record.data is None:
                reason = record.error or reason  # a record of the file as a whole
            if not left:
                break
    except (*STORAGE_ERRORS, pa.ArrowException, ValueError) as error:
        reason = storage_problem(error)
    return results | {image_id: Unreadable(image_id, reason) for image_id in left}


def convert(record: Record, row: Row, make: Make) -> Row | Unreadable:
    if record.data is None:
        return Unreadable(record.image_id, record.error or record.status)
    try:
        decoded = isolated(decode_to_bytes, DEFAULT_LIMITS)(record.data)
    except DecodeError as error:
        return Unreadable(record.image_id, str(error))
    size = (row["width"], row["height"])
    if tuple(decoded["size"]) != size:
        return Unreadable(record.image_id, "it has another size than when it was labelled")
    return make(row, Image.frombytes("RGB", size, decoded["rgb"]))


def find_records(location: Location, rows: Sequence[Row], column: str | None) -> Iterable[Record]:
    """Records of a file, among them those of the rows if they still exist.

    Raises:
        OSError: the storage failed.
        pyarrow.ArrowException, ValueError: the file is a damaged table.
    """
    name = rows[0]["shard"]
    corpus = Corpus(location, format_of(name) or "folder", shards=(), columns=Columns(column))
    if corpus.format == "parquet":
        return table_records(corpus, rows)
    return read_shard(corpus, Shard(name, location.path))


def table_records(corpus: Corpus, rows: Sequence[Row]) -> Iterator[Record]:
    """Rows of a table. Row groups without any of them are skipped."""
    by_number = {int(row["image_id"].rpartition("/")[2]): row for row in rows}
    with corpus.root.fs.open(corpus.root.path, "rb") as source, pq.ParquetFile(source) as file:
        for number, batch in rows_at(file, list(by_number), [image_column(file.schema_arrow, corpus.columns.image)]):
            row = by_number[number]
            record = Record(row["image_id"], row["uri"], row["shard"], next(image_bytes(batch.column(0))))
            yield checked(record, corpus.limits.max_file_bytes)
