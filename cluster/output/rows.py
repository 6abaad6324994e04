"""Reading what a labelling job wrote: the rows of an output folder, as a stream of Arrow batches."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.output.folder import PENDING_SUFFIX, Output, checkpoint_name, file_name
from cluster.storage import STORAGE_ERRORS, Location, open_location, storage_problem
from schemas.errors import RequestError
from schemas.rows import Status

FILES_AHEAD = 8
BATCH_ROWS = 1024
SQL_MEMORY = "256MB"
"""What conditions may use."""


@dataclass(frozen=True)
class Labels:
    """The rows of an output folder.

    Attributes:
        location: the folder.
        manifest: content of its ``manifest.json``.
        paths: its rows files that count.
        finished: whether the job was done.
    """

    location: Location
    manifest: dict[str, Any]
    paths: tuple[str, ...]
    finished: bool

    @property
    def class_names(self) -> list[str]:
        """In vocabulary order: a category's id is its position, from 1."""
        return [category["name"] for category in self.manifest["categories"]]

    def batches(self, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The rows with status ok, file by file.

        Args:
            columns: names of `schemas.rows.ROW_SCHEMA`, or of parts such as ``annotations.list.element.area``.
            batch_rows: most rows at a time.

        Raises:
            OSError: the storage failed.
        """
        wanted = list(dict.fromkeys(["status", *columns]))
        for file in self.files():
            try:
                with file:
                    for batch in file.iter_batches(batch_rows, columns=wanted):
                        yield batch.filter(pc.equal(batch["status"], Status.OK.value))
            except pa.ArrowInvalid as error:
                raise OSError(f"a rows file in {self.location.url} is damaged: {error}") from error

    def files(self) -> Iterator[pq.ParquetFile]:
        """The rows files, opened a few ahead."""
        with ThreadPoolExecutor(FILES_AHEAD) as pool:
            opened: deque[Future[pq.ParquetFile]] = deque()
            for path in self.paths:
                opened.append(pool.submit(self.open, path))
                if len(opened) == FILES_AHEAD:
                    yield opened.popleft().result()
            while opened:
                yield opened.popleft().result()

    def open(self, path: str) -> pq.ParquetFile:
        """A rows file; of a remote one, only the parts that are wanted are fetched.

        Raises:
            OSError: it cannot be read.
        """
        file = self.location.fs.open(path, "rb", **({} if self.location.is_local else {"cache_type": "none"}))
        try:
            return pq.ParquetFile(file, pre_buffer=not self.location.is_local)
        except pa.ArrowInvalid as error:
            raise OSError(f"the rows file {path} is damaged: {error}") from error


def open_labels(address: str, flag: str) -> Labels:
    """The labels in an output folder, finished or not.

    Raises:
        RequestError: it is no such folder, or cannot be read.
    """
    output = Output(open_location(address, flag))
    try:
        manifest = output.read_json("manifest.json")
        finished, paths = output.is_finished(), rows_that_count(output)
    except (*STORAGE_ERRORS, ValueError) as error:
        raise RequestError(f"{flag} {address} cannot be read: {storage_problem(error)}") from error
    if manifest is None or "categories" not in manifest:
        raise RequestError(f"{flag} {address} has no manifest.json: name the --output of a labelling job")
    return Labels(output.location, manifest, tuple(paths), finished)


def rows_that_count(output: Output) -> list[str]:
    """Rows files by the rule of `cluster.output.folder`, without touching those that do not count."""
    paths = output.rows_files()
    if output.is_finished():
        return paths
    committed = {file_name(path) for path in output.checkpoint_files() if not path.endswith(PENDING_SUFFIX)}
    counted = set((output.read_json("_checkpoint/counted.json") or {}).get("files", ()))
    return [path for path in paths if checkpoint_name(path) in committed or file_name(path) in counted]


def select_rows(
    rows: Iterable[pa.RecordBatch], schema: pa.Schema, select: str, where: str, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """What SQL says of rows, as a stream.

    Args:
        rows: a stream, with more columns than are needed.
        schema: the columns that are needed.
        select: SQL for the columns to return.
        where: SQL that holds for the rows to return. It sees the rows and nothing else: no files, no network.
        batch_rows: most rows at a time.

    Raises:
        duckdb.Error: the SQL is wrong, or needs more memory than it may have.
        OSError: whatever error ended the stream of rows.
    """
    problems: list[Exception] = []

    def narrowed() -> Iterator[pa.RecordBatch]:
        try:
            yield from (batch.select(schema.names) for batch in rows)
        except Exception as error:
            problems.append(error)
            raise

    settings: dict[str, Any] = {
        "memory_limit": SQL_MEMORY, "preserve_insertion_order": False, "python_enable_replacements": False,
        "temp_directory": "",
    }  # fmt: skip
    with duckdb.connect(config=settings) as database:
        database.execute("SET enable_external_access = false")
        database.execute("SET lock_configuration = true")
        database.register("rows", pa.RecordBatchReader.from_batches(schema, narrowed()))
        try:
            yield from database.sql(f"SELECT {select} FROM rows WHERE {where}").to_arrow_reader(batch_rows)
        except duckdb.Error as error:  # DuckDB wraps the stream's own error beyond recognition
            raise (problems[0] if problems else error) from None
