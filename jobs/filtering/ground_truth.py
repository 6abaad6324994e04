"""Ground truth for `filter --stats`: which classes each image really shows, from a table."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cliper.files import STORAGE_ERRORS
from cluster.storage import Location, open_location
from jobs.filtering.conditions import check_class
from schemas.errors import RequestError

PAIRS = pa.schema([("image_id", pa.string()), ("class", pa.string())])


def read_ground_truth(address: str, class_names: Sequence[str]) -> pa.Table:
    """Pairs of an image and a class that it shows (`PAIRS`). An image without classes has a pair without a name.

    Args:
        address: Parquet or CSV with ``image_id`` and ``class``, or Parquet with ``image_id`` and a list ``classes``.
        class_names: the vocabulary.

    Raises:
        RequestError: the table cannot be read, has other columns, or names a class that the vocabulary lacks.
    """
    location = open_location(address, "--truth")
    pairs = one_class_per_row(read_table(location), location)
    for name in filter(None, pairs["class"].unique().to_pylist()):
        check_class(str(location), name, class_names)
    return pairs


def read_table(location: Location) -> pa.Table:
    try:
        with location.fs.open(location.path, "rb") as file:
            if location.path.lower().endswith(".csv"):
                options = pyarrow.csv.ConvertOptions(column_types=PAIRS)
                return pyarrow.csv.read_csv(file, convert_options=options)
            return pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise RequestError(f"{location} is neither a Parquet nor a CSV table: {error}") from error
    except STORAGE_ERRORS as error:
        raise location.refusal(error, "read") from error


def one_class_per_row(table: pa.Table, location: Location) -> pa.Table:
    names = set(table.column_names)
    if {"image_id", "class"} <= names:
        parts = [table.select(PAIRS.names)]
    elif {"image_id", "classes"} <= names and pa.types.is_list(table.schema.field("classes").type):
        lists, ids = table["classes"].combine_chunks(), table["image_id"]
        classes = pc.list_flatten(lists)
        parts = [
            pa.table([ids.take(pc.list_parent_indices(lists)), classes], PAIRS.names),
            pa.table([ids, pa.nulls(len(ids), classes.type)], PAIRS.names),
        ]
    else:
        raise RequestError(f"{location} needs columns image_id and class, or image_id and a list column classes")
    try:
        return pa.concat_tables(parts).cast(PAIRS)
    except pa.ArrowException as error:
        raise RequestError(f"{location}: image_id and classes must be text ({error})") from error
