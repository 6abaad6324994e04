"""Which classes are really in which pictures, from a table that somebody made."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cluster.storage import STORAGE_ERRORS, open_location, storage_problem
from jobs.filtering.conditions import check_class
from schemas.errors import RequestError


def read_truth(address: str, class_names: Sequence[str]) -> tuple[pa.Array, np.ndarray]:
    """The pictures that the table has, and for each and every class whether it is there.

    Args:
        address: Parquet or CSV with ``image_id`` and ``class``, or Parquet with ``image_id`` and a list ``classes``.
        class_names: the vocabulary.

    Returns:
        Distinct image ids, and bool [images, classes].

    Raises:
        RequestError: it cannot be read, has other columns, or names a class that the vocabulary lacks.
    """
    table = one_class_a_row(read_table(address), address)
    image_ids = table["image_id"].unique()
    rows = pc.index_in(table["image_id"], image_ids)
    columns = pc.index_in(table["class"], pa.array(class_names, pa.string()))
    named = pc.and_(pc.is_valid(table["class"]), pc.not_equal(table["class"], ""))
    unknown = table.filter(pc.and_(pc.fill_null(named, False), pc.is_null(columns)))["class"]
    if len(unknown):
        check_class(f"--truth {address}", unknown[0].as_py(), class_names)
    truth = np.zeros((len(image_ids), len(class_names)), bool)
    known = pc.is_valid(columns)
    truth[rows.filter(known).to_numpy(), columns.filter(known).to_numpy()] = True
    return image_ids, truth


def read_table(address: str) -> pa.Table:
    location = open_location(address, "--truth")
    try:
        with location.fs.open(location.path, "rb") as file:
            if address.lower().endswith(".csv"):
                types = {"image_id": pa.string(), "class": pa.string()}
                return pyarrow.csv.read_csv(file, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
            return pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise RequestError(f"--truth {address} is neither a Parquet nor a CSV table: {error}") from error
    except STORAGE_ERRORS as error:
        raise RequestError(f"--truth {address} cannot be read: {storage_problem(error)}") from error


def one_class_a_row(table: pa.Table, address: str) -> pa.Table:
    """The table as strings ``image_id`` and ``class``; a picture without classes has a row with null."""
    names = set(table.column_names)
    if {"image_id", "class"} <= names:
        pairs = table.select(["image_id", "class"])
    elif {"image_id", "classes"} <= names and pa.types.is_list(table.schema.field("classes").type):
        lists = table["classes"].combine_chunks()
        classes = pc.list_flatten(lists)
        ids = table["image_id"].take(pc.list_parent_indices(lists))
        pairs = pa.table({
            "image_id": pa.concat_arrays([*chunks(ids), *chunks(table["image_id"])]),
            "class": pa.concat_arrays([classes, pa.nulls(len(table), classes.type)]),
        })  # fmt: skip
    else:
        raise RequestError(f"--truth {address} needs columns image_id and class, or image_id and a list column classes")
    try:
        return pairs.cast(pa.schema([("image_id", pa.string()), ("class", pa.string())]))
    except pa.ArrowException as error:
        raise RequestError(f"--truth {address}: image_id and classes must be text ({error})") from error


def chunks(column: pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks
