"""Reading single pictures again that a labelling job has read: from its input, or from where the rows say they are."""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.corpus.decode import DecodeError, decode_image
from cluster.corpus.readers import Record, Shard, checked, image_bytes, image_column
from cluster.corpus.sources import SUFFIXES, Corpus, CorpusFormat, read_shard
from cluster.storage import STORAGE_ERRORS, Location, open_location, storage_problem
from jobs.page.samples import rows_at
from schemas.errors import RequestError

READERS = 4
"""Files that are read at a time; each reader has one decoded picture in memory."""

Row = dict[str, Any]
Made = TypeVar("Made")


class Unreadable(NamedTuple):
    """A picture that cannot be shown, and why."""

    image_id: str
    reason: str


def open_images(address: str) -> Location:
    """The folder or prefix that pictures are read from; of a single file, the folder it is in.

    Raises:
        RequestError: it is not there.
    """
    location = open_location(address, "--images")
    try:
        if not location.fs.exists(location.path):
            raise FileNotFoundError(location.path)
        is_file = location.fs.isfile(location.path)
    except STORAGE_ERRORS as error:
        raise RequestError(f"--images {address} cannot be read: {storage_problem(error)}") from error
    return replace(location, path=posixpath.dirname(location.path)) if is_file else location


def read_pictures(
    rows: Sequence[Row], images: Location | None, make: Callable[[Row, np.ndarray], Made]
) -> tuple[list[Made], list[Unreadable]]:
    """Read and decode the rows' pictures; every file is read once, and no further than needed.

    Args:
        rows: rows with status ok.
        images: the job's input; None looks where each row's ``uri`` points.
        make: what to do with a row and its pixels, uint8 [height, width, 3]; called from several threads.

    Returns:
        What was made, in the order of the rows, and the pictures that cannot be read or decoded any more.
    """
    by_file: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_file[row["shard"] if images else file_address(row)].append(row)
    with ThreadPoolExecutor(READERS) as readers:
        groups = readers.map(partial(read_group, images=images, make=make), by_file.items())
        made = {row["image_id"]: result for group in groups for row, result in group}
    results = [made[row["image_id"]] for row in rows]
    unreadable = [result for result in results if isinstance(result, Unreadable)]
    return [result for result in results if not isinstance(result, Unreadable)], unreadable


def read_group(
    group: tuple[str, Sequence[Row]], images: Location | None, make: Callable[[Row, np.ndarray], Made]
) -> list[tuple[Row, Made | Unreadable]]:
    """The pictures of one file."""
    address, rows = group
    left = {row["image_id"]: row for row in rows}
    results: list[tuple[Row, Made | Unreadable]] = []
    reason = "it is no longer there"
    try:
        location = images / address if images else open_location(address, "uri")
        for record in find_records(location, rows):
            if record.image_id in left:
                row = left.pop(record.image_id)
                results.append((row, made_of(record, row, make)))
            elif record.data is None:
                reason = record.error or reason  # of the file as a whole
            if not left:
                break
    except STORAGE_ERRORS as error:
        reason = storage_problem(error)
    except (RequestError, pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
    return results + [(row, Unreadable(image_id, reason)) for image_id, row in left.items()]


def made_of(record: Record, row: Row, make: Callable[[Row, np.ndarray], Made]) -> Made | Unreadable:
    if record.data is None:
        return Unreadable(record.image_id, record.error or record.status)
    try:
        pixels = decode_image(record.data)
    except DecodeError as error:
        return Unreadable(record.image_id, str(error))
    if pixels.shape[:2] != (row["height"], row["width"]):
        return Unreadable(record.image_id, "it has another size than when it was labelled")
    return make(row, pixels)


def find_records(location: Location, rows: Sequence[Row]) -> Iterable[Record]:
    """Records of a file among which are those of the rows, if they are there at all.

    Raises:
        OSError: the storage failed.
        pyarrow.ArrowException, ValueError: the file is a damaged table.
    """
    name = rows[0]["shard"]
    corpus = Corpus(location, format_of(name), shards=())
    if corpus.format == "parquet":
        return table_records(corpus, rows)
    return read_shard(corpus, Shard(name, location.path))


def table_records(corpus: Corpus, rows: Sequence[Row]) -> Iterator[Record]:
    """Rows of a table; other row groups are passed over."""
    by_number = {int(row["image_id"].rpartition("/")[2]): row for row in rows}
    with corpus.root.fs.open(corpus.root.path, "rb") as source, pq.ParquetFile(source) as file:
        for number, batch in rows_at(file, list(by_number), [image_column(file.schema_arrow)]):
            row = by_number[number]
            record = Record(row["image_id"], row["uri"], row["shard"], next(image_bytes(batch.column(0))))
            yield checked(record, corpus.limits.max_file_bytes)


def format_of(name: str) -> CorpusFormat:
    """How a file of a corpus is read, from its name's ending."""
    return next((kind for kind, suffixes in SUFFIXES.items() if name.lower().endswith(suffixes)), "folder")


def file_address(row: Row) -> str:
    """The address of the file that a picture is in."""
    match format_of(row["shard"]):
        case "tar":
            return str(row["uri"]).rpartition("::")[2]
        case "parquet":
            return str(row["uri"]).rpartition("#row=")[0]
        case _:
            return str(row["uri"])
