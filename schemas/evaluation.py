"""One row per labelled image: what an evaluation keeps of it. Figures are sums over rows.

==================  ==============================================================================================
field               meaning
==================  ==============================================================================================
``image_id``, ``uri``, ``shard``, ``shard_version``, ``shard_images``, ``width``, ``height``, ``status``, ``error``,
``class_scores``
                    as in `schemas.rows`
``present``         labels in the ground truth, ascending
``confusion``       pixels by true and predicted label, only pairs that occur
``threshold_histogram``
                    when thresholds are looked for: per class, and per step of its map's value where the class wins
                    over the others, how many pixels there are and how many of them are the class's own
``seconds``         time for labelling, divided evenly among the images of a batch
==================  ==============================================================================================

Label 0 is background, or no class where a data set has no background; label c + 1 is class c.
"""

import pyarrow as pa

from schemas.rows import ROW_SCHEMA

VALUE_STEPS = 100
"""Steps of ``threshold_histogram`` from 0 to 1; values above 1 are in the last one."""

CONFUSION = pa.struct(
    [
        pa.field("truth", pa.int32(), nullable=False),
        pa.field("predicted", pa.int32(), nullable=False),
        pa.field("pixels", pa.int64(), nullable=False),
    ]
)
THRESHOLD_STEP = pa.struct(
    [
        pa.field("class", pa.int32(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("hits", pa.int64(), nullable=False),
    ]
)

KEPT = (
    "image_id",
    "uri",
    "shard",
    "shard_version",
    "shard_images",
    "width",
    "height",
    "status",
    "error",
    "class_scores",
)
EVALUATION_SCHEMA = pa.schema(
    [
        *(ROW_SCHEMA.field(name) for name in KEPT),
        pa.field("present", pa.list_(pa.int32())),
        pa.field("confusion", pa.list_(CONFUSION)),
        pa.field("threshold_histogram", pa.list_(THRESHOLD_STEP)),
        pa.field("seconds", pa.float32()),
    ]
)
