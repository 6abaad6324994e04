"""From an image file's bytes to the pixels that the models read. Full-resolution pixels never leave this step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa

from cliper.preprocess import InputSpec, Prepared
from cluster.corpus.columns import Columns, Kept
from cluster.corpus.decode import Decoder
from cluster.corpus.isolation import IsolatedProcess, isolated
from cluster.corpus.labelled import LabelledCorpus
from cluster.corpus.limits import Limits
from cluster.corpus.readers import Record
from schemas.errors import DecodeError
from schemas.rows import ROW_SCHEMA, Status

IDENTITY = (
    "image_id", "uri", "shard", "shard_version", "shard_images", "passed_over", "width", "height", "status", "error",
)  # fmt: skip
"""Columns of a row that are known before an image is labelled."""
KEPT = "kept:"
"""Before the names of kept columns, which may be any, until the images are labelled."""
NOTHING_KEPT = Kept(Columns(), pa.schema([]))
PREPARED_SCHEMA = pa.schema(
    [
        *(ROW_SCHEMA.field(name) for name in IDENTITY),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("seed", pa.int64()),
        pa.field("clip", pa.large_binary()),
        pa.field("affinity", pa.large_binary()),
        pa.field("ground_truth", pa.large_binary()),
    ]
)
"""Images between reading and labelling: the fields of `cliper.preprocess.Prepared`, and in an evaluation the mask, as
`cliper.ground_truth.pack_truth` packs it. All are null where the image has failed."""


@dataclass(frozen=True)
class Preparer:
    """Turns records into prepared rows, `PREPARED_SCHEMA` and kept columns; failures stay in as rows without pixels.

    Attributes:
        inputs: what the models read.
        limits: on single images.
        labelled: in an evaluation, where the masks are.
        kept: columns of the input that rows get. In the prepared rows they follow the others, with `KEPT` before their
            names.
    """

    inputs: InputSpec
    limits: Limits
    labelled: LabelledCorpus | None = None
    kept: Kept = NOTHING_KEPT

    @property
    def schema(self) -> pa.Schema:
        """Of prepared rows."""
        return pa.schema([*PREPARED_SCHEMA, *(field.with_name(KEPT + field.name) for field in self.kept.schema)])

    def table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Prepared images as a table."""
        table = pa.Table.from_pylist(rows, PREPARED_SCHEMA)
        nothing = [pa.nulls(1, field.type) for field in self.kept.schema]
        columns = zip(*(row.get("kept", nothing) for row in rows), strict=True)
        for field, values in zip(self.kept.schema, columns, strict=True):
            table = table.append_column(KEPT + field.name, pa.concat_arrays(values))
        return table

    @property
    def decode(self) -> IsolatedProcess:
        """This thread's process for decoding."""
        lookup = self.labelled.lookup.tobytes() if self.labelled else None
        return isolated(Decoder(self.inputs, self.limits.max_pixels, lookup), self.limits)

    def __call__(self, record: Record) -> dict[str, Any]:
        """Prepare one image.

        Raises:
            OSError: the storage of the masks failed.
        """
        row: dict[str, Any] = record._asdict()
        data, beside = row.pop("data"), row.pop("beside")
        try:
            row["kept"], row["tags"] = self.kept.values(beside)
        except (ValueError, pa.ArrowException) as error:
            if data is not None:
                return row | {"status": Status.BAD_COLUMN, "error": f"{record.uri}: {shorten(str(error), 200)}"}
        if data is None:
            return row
        try:
            return row | self.decode(data, self.labelled.fetch_mask(record.image_id) if self.labelled else None)
        except DecodeError as error:
            mask = (
                f"mask {self.labelled.mask_of(record.image_id).url}: "
                if error.status == Status.NO_TRUTH and self.labelled
                else ""
            )
            return row | {"status": error.status, "error": f"{record.uri}: {mask}{error}"}


def read_prepared(table: pa.Table, inputs: InputSpec) -> list[Prepared]:
    """The images of a table of `PREPARED_SCHEMA` without failures; their pixels are not copied.

    Args:
        table: the rows.
        inputs: with which they were prepared.
    """
    found = []
    for index in range(table.num_rows):
        image_hw = (table["height"][index].as_py(), table["width"][index].as_py())
        clip = pixels_of(table["clip"][index], inputs.clip_hw(image_hw))
        affinity_hw = inputs.affinity_hw(image_hw)
        affinity = None if affinity_hw is None else pixels_of(table["affinity"][index], affinity_hw)
        found.append(Prepared(clip, affinity, image_hw, table["seed"][index].as_py()))
    return found


def pixels_of(value: pa.LargeBinaryScalar, size_hw: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(value.as_buffer(), np.uint8).reshape(*size_hw, 3)
