"""Select the images that fulfil conditions: as a Parquet table, and as ids for copying."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.output.files import atomic_write
from cluster.output.rows import Labels, select_rows
from cluster.output.sorting import sorted_by_id
from cluster.storage import Location
from jobs.filtering.conditions import Conditions, quantity_sql
from schemas.errors import JobFailedError, RequestError
from schemas.manifest import METADATA_KEY
from schemas.rows import ANNOTATION, ROW_SCHEMA

FILTER_KEY = b"cliper_filter"
COLUMNS = ("image_id", "uri", "shard", "width", "height", "status", "classes", "class_scores")
ANNOTATION_FIELDS = ("category_id", "score", "area", "bbox")
"""All fields of an annotation except the mask, which is most of its bytes."""
BATCH_ROWS = 64 * 1024
KEPT_COLUMNS = ("image_id", "uri", "width", "height", "classes")
IDS = pa.schema([ROW_SCHEMA.field("image_id"), ROW_SCHEMA.field("shard")])


@dataclass
class Selection:
    """The images that were kept.

    Attributes:
        conditions: the conditions that they fulfil.
        considered: number of rows with status ok.
        images: table of ``image_id`` and ``shard``, sorted by id.
        unknown_ids: number of ids in ``conditions.exclude_ids`` that no row with status ok has.
    """

    conditions: Conditions
    considered: int
    images: pa.Table
    unknown_ids: int

    @property
    def kept(self) -> int:
        return int(self.images.num_rows)


def select_images(labels: Labels, conditions: Conditions, target: Location | None) -> Selection:
    """Select images. If there is a target, write them there as a Parquet table.

    Raises:
        RequestError: the SQL is wrong.
        JobFailedError: memory or disk ran out.
        OSError: the storage failed.
    """
    rows_schema, columns = columns_for(labels, conditions)
    considered, unknown_ids = 0, set(conditions.exclude_ids)

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal considered
        for batch in labels.batches(columns, BATCH_ROWS):
            considered += len(batch)
            if unknown_ids:
                unknown_ids.difference_update(batch["image_id"].to_pylist())
            yield batch

    schema, names = kept_schema(labels, conditions), labels.class_names
    scores = [quantity_sql("score", name, names) for name in conditions.class_names]
    kept = [quoted(name) for name in labels.kept_columns.names]
    select = ", ".join([*KEPT_COLUMNS, *kept, *scores, "shard"])
    images = [IDS.empty_table()]
    try:
        with contextlib.ExitStack() as stack:
            writer = None
            if target is not None:
                file = stack.enter_context(atomic_write(target))
                writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
            for kept in sorted_by_id(select_rows(counted(), rows_schema, select, conditions.sql(names), BATCH_ROWS)):
                images.append(kept.select(IDS.names).cast(IDS))
                if writer is not None:
                    writer.write_table(kept.drop_columns("shard").rename_columns(schema.names).cast(schema))
    except duckdb.OperationalError as error:
        raise JobFailedError(f"the conditions cannot be evaluated: {first_line(error)}") from error
    except duckdb.Error as error:
        raise RequestError(f"--where: {first_line(error)}") from error
    return Selection(conditions, considered, pa.concat_tables(images), len(unknown_ids))


def columns_for(labels: Labels, conditions: Conditions) -> tuple[pa.Schema, list[str]]:
    """The columns that conditions may use, and the names to read for them. Annotations are read only if used."""
    fields = [*(ROW_SCHEMA.field(name) for name in COLUMNS), *labels.kept_columns]
    columns = [field.name for field in fields]
    sql = conditions.sql(labels.class_names)
    if re.search(r"\bclass_probabilities\b", sql, re.IGNORECASE):
        fields.append(ROW_SCHEMA.field("class_probabilities"))
        columns.append("class_probabilities")
    if re.search(r"\bannotations\b", sql, re.IGNORECASE):
        light = pa.struct([ANNOTATION.field(name) for name in ANNOTATION_FIELDS])
        fields.append(pa.field("annotations", pa.list_(light)))
        columns += [f"annotations.list.element.{name}" for name in ANNOTATION_FIELDS]
    return pa.schema(fields), columns


def kept_schema(labels: Labels, conditions: Conditions) -> pa.Schema:
    """The schema of the written table. Its metadata holds the labels' manifest and the conditions."""
    fields = [*(ROW_SCHEMA.field(name) for name in KEPT_COLUMNS), *labels.kept_columns]
    fields += [pa.field(f"score: {name}", pa.float32()) for name in conditions.class_names]
    request = {"labels": labels.location.url, **asdict(conditions)}
    return pa.schema(fields, {
        METADATA_KEY: json.dumps(labels.manifest, ensure_ascii=False).encode("utf-8"),
        FILTER_KEY: json.dumps(request, ensure_ascii=False).encode("utf-8"),
    })  # fmt: skip


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
