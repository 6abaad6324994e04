"""From an image file's bytes to the pixels that the models read. Full-resolution pixels never leave this step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cliper.preprocess import InputSpec, Prepared
from cluster.corpus.decode import DecodeError, decode_rgb, image_seed, time_limit
from cluster.corpus.ground_truth import MaskError, pack_truth
from cluster.corpus.labelled import LabelledCorpus
from cluster.corpus.limits import Limits
from cluster.corpus.readers import Record
from schemas.rows import ROW_SCHEMA, Status

IDENTITY = ("image_id", "uri", "shard", "shard_images", "width", "height", "status", "error")
"""Columns of a row that are known before an image is labelled."""
PREPARED_SCHEMA = pa.schema(
    [
        *(ROW_SCHEMA.field(name) for name in IDENTITY),
        pa.field("seed", pa.int64()),
        pa.field("clip", pa.large_binary()),
        pa.field("affinity", pa.large_binary()),
        pa.field("ground_truth", pa.large_binary()),
    ]
)
"""Images between reading and labelling: the fields of `cliper.preprocess.Prepared`, and in an evaluation the mask, as
`cluster.corpus.ground_truth.pack_truth` packs it. All are null where the image has failed."""


@dataclass(frozen=True)
class Preparer:
    """Turns records into rows of `PREPARED_SCHEMA`; failures stay in as rows without pixels.

    Attributes:
        inputs: what the models read.
        limits: on single images.
        labelled: in an evaluation, where the masks are.
    """

    inputs: InputSpec
    limits: Limits
    labelled: LabelledCorpus | None = None

    def __call__(self, record: Record) -> dict[str, Any]:
        """Prepare one image.

        Raises:
            OSError: the storage of the masks failed.
        """
        row: dict[str, Any] = record._asdict()
        data = row.pop("data")
        if data is None:
            return row
        try:
            with time_limit(self.limits.picture_timeout_s):
                rgb = decode_rgb(data, self.limits.max_pixels)
            image = self.inputs.prepare(rgb, image_seed(data))
            truth = self.truth_of(record.image_id, image.image_hw)
        except DecodeError as error:
            return row | {"status": error.status, "error": f"{record.uri}: {error}"}
        except MaskError as error:
            return row | {"status": Status.NO_TRUTH, "error": f"{record.uri}: {error}"}
        height, width = image.image_hw
        affinity = None if image.affinity is None else image.affinity.tobytes()
        return row | {
            "width": width, "height": height, "seed": image.seed, "clip": image.clip.tobytes(), "affinity": affinity,
            "ground_truth": truth,
        }  # fmt: skip

    def truth_of(self, image_id: str, image_hw: tuple[int, int]) -> bytes | None:
        """The packed label of every pixel; None outside an evaluation.

        Raises:
            MaskError: the mask cannot be used.
            OSError: the storage failed.
        """
        if self.labelled is None:
            return None
        truth = self.labelled.read_mask(image_id)
        if truth.shape != image_hw:
            sizes = (truth.shape[1], truth.shape[0], image_hw[1], image_hw[0])
            raise MaskError("the mask has {} x {} pixels, the image {} x {}".format(*sizes))
        return pack_truth(truth)


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
