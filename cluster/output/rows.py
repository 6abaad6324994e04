"""Read what a labelling job wrote: the rows of an output folder, as a stream of Arrow batches."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cliper.files import STORAGE_ERRORS
from cluster.output.folder import Output
from cluster.storage import Location, open_location
from schemas.errors import RequestError
from schemas.rows import ROW_SCHEMA, Status

READERS = 16
FILES_AHEAD = 8
BATCH_ROWS = 1024
WITH_CATEGORIES = {"annotations", "annotations.list.element.category_id"}
SQL_MEMORY = "256MB"
"""Memory for evaluating SQL conditions."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Labels:
    """The rows of an output folder.

    Attributes:
        location: the folder.
        manifest: content of its ``manifest.json``.
        paths: its rows files that count.
        finished: True if the job is done.
    """

    location: Location
    manifest: dict[str, Any]
    paths: tuple[str, ...]
    finished: bool

    @cached_property
    def kept_columns(self) -> pa.Schema:
        """The columns that come from the input (``--keep-columns``).

        Raises:
            OSError: the storage failed.
        """
        if not self.paths or "keep_columns" not in self.manifest["input"]:
            return pa.schema([])
        with self.open(self.paths[0]) as file:
            return pa.schema([field for field in file.schema_arrow if field.name not in ROW_SCHEMA.names])

    @property
    def image_column(self) -> str | None:
        """The column with the images, if the job was told one (``--image-column``)."""
        column: str | None = self.manifest["input"].get("image_column")
        return column

    @property
    def class_names(self) -> list[str]:
        """Names in vocabulary order. A category's id is its position, from 1."""
        return [category["name"] for category in self.manifest["categories"]]

    def batches(
        self, columns: Sequence[str], batch_rows: int = BATCH_ROWS, left_out: Counter[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows with status ok, file by file.

        Args:
            columns: names of `schemas.rows.ROW_SCHEMA`, or of parts such as ``annotations.list.element.area``.
            batch_rows: maximum number of rows at a time.
            left_out: counts the other rows by status.

        Raises:
            OSError: the storage failed.
            RequestError: a row has a category that the manifest does not know.
        """
        wanted = list(dict.fromkeys(["status", *columns]))
        for file in self.files():
            try:
                with file:
                    for batch in file.iter_batches(batch_rows, columns=wanted):
                        ok = batch.filter(pc.equal(batch["status"], Status.OK.value))
                        if left_out is not None and len(ok) < len(batch):
                            left_out.update(set_apart(batch["status"]))
                        if any(column in WITH_CATEGORIES for column in wanted):
                            self.categories_in(ok["annotations"])
                        yield ok
            except pa.ArrowInvalid as error:
                raise OSError(f"a rows file in {self.location.url} is damaged: {error}") from error

    def categories_in(self, annotations: pa.Array) -> pa.Array:
        """The category ids in a column ``annotations``.

        Raises:
            RequestError: one of them is not in the manifest.
        """
        categories = pc.struct_field(pc.list_flatten(annotations), "category_id")
        ends, last = pc.min_max(categories), len(self.class_names)
        if len(categories) and not 1 <= ends["min"].as_py() <= ends["max"].as_py() <= last:
            raise RequestError(
                f"{self.location.url} holds rows that do not fit the manifest: a category is not between 1 and {last}"
            )
        return categories

    def files(self) -> Iterator[pq.ParquetFile]:
        """Open the rows files, a few of them ahead."""
        with ThreadPoolExecutor(FILES_AHEAD) as pool:
            opened: deque[Future[pq.ParquetFile]] = deque()
            for path in self.paths:
                opened.append(pool.submit(self.open, path))
                if len(opened) == FILES_AHEAD:
                    yield opened.popleft().result()
            while opened:
                yield opened.popleft().result()

    def open(self, path: str) -> pq.ParquetFile:
        """Open a rows file. Of a remote one, only the requested parts are fetched.

        Raises:
            OSError: it cannot be read.
        """
        file = self.location.fs.open(path, "rb", **({} if self.location.is_local else {"cache_type": "none"}))
        try:
            return pq.ParquetFile(file, pre_buffer=not self.location.is_local)
        except pa.ArrowInvalid as error:
            raise OSError(f"the rows file {path} is damaged: {error}") from error


def set_apart(statuses: pa.Array) -> dict[str, int]:
    """How often each status other than ok is there."""
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(statuses).to_pylist()}
    return {status: count for status, count in counts.items() if status != Status.OK}


def open_labels(address: str, flag: str) -> Labels:
    """Open the labels in an output folder, finished or not.

    Raises:
        RequestError: it is not an output folder, or cannot be read.
    """
    output = Output(open_location(address, flag))
    try:
        manifest = output.read_json("manifest.json")
        finished, paths = output.is_finished(), output.rows_files()
    except STORAGE_ERRORS as error:
        raise output.location.refusal(error, "read") from error
    try:
        names = [category["name"] for category in (manifest or {}).get("categories", ())]
    except (TypeError, KeyError) as error:
        raise RequestError(f"{output.location} has a damaged manifest.json: its categories have no names") from error
    if manifest is None or not names:
        raise RequestError(f"{output.location} has no manifest.json: name the output folder of a labelling job")
    return Labels(output.location, manifest, tuple(paths), finished)


def map_rows_files(
    output: Output,
    columns: Sequence[str],
    function: Callable[[pa.Table], Result],
    paths: Sequence[str] | None = None,
    damaged: list[str] | None = None,
) -> Iterator[tuple[str, Result]]:
    """Apply a function to columns of every rows file that counts, several files at a time.

    Args:
        output: the output.
        columns: names of columns, or of parts such as ``annotations.list.element.area``.
        function: takes a file's table. It is called from several threads.
        paths: the files to read instead.
        damaged: gets the paths of files that are no Parquet files, as a power failure leaves them; None makes them an
            error.

    Yields:
        Each file's path and the function's result.

    Raises:
        OSError: the storage failed, or a file is damaged.
    """

    def read(path: str) -> pa.Table | None:
        with output.location.fs.open(path, "rb") as file:
            try:
                return pq.ParquetFile(file).read(columns=list(columns))
            except pa.ArrowInvalid as error:
                if damaged is None:
                    raise OSError(f"the rows file {path} is damaged: {error}") from error
                damaged.append(path)
                return None

    def apply(path: str) -> tuple[str, Result] | None:
        table = read(path)
        return None if table is None else (path, function(table))

    with ThreadPoolExecutor(READERS) as readers:
        results = readers.map(apply, output.rows_files() if paths is None else paths)
        yield from (result for result in results if result is not None)


def first_rows(image_ids: Iterable[str], seen: set[str]) -> list[bool]:
    """True for the first row of each image, False for repeated ones: two runs may have labelled an image.

    Args:
        image_ids: one per row.
        seen: ids of the rows before these. The new ones are added.
    """
    first = []
    for image_id in image_ids:
        first.append(image_id not in seen)
        seen.add(image_id)
    return first


def select_rows(
    rows: Iterable[pa.RecordBatch], schema: pa.Schema, select: str, where: str, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Stream the result of an SQL query over rows.

    Args:
        rows: a stream, with more columns than are needed.
        schema: the columns that are needed.
        select: SQL for the columns to return.
        where: SQL condition on the rows to return. It sees the rows and nothing else: no files, no network.
        batch_rows: maximum number of rows at a time.

    Raises:
        duckdb.Error: the SQL is wrong, or needs more memory than it may have.
        OSError: the stream of rows failed.
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
