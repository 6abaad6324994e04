"""`cliper.Labeler` over a Ray Data dataset of your own."""

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray

from cliper import Labeler
from cliper.preprocess import Prepared
from cliper.specs import set_torch_flags
from cluster.actors import give_up, label_rows
from cluster.batches import Failure, SafeBatches
from cluster.corpus.columns import USUAL_IMAGE_COLUMNS
from cluster.encoders import AnnotationEncoder, Row
from cluster.sizing import Cluster
from schemas.errors import DecodeError
from schemas.rows import ROW_SCHEMA, Status

ADDED = (
    "width", "height", "status", "error", "class_scores", "refined_classes", "class_probabilities", "lost_to",
    "classes", "annotations",
)  # fmt: skip
"""Columns of `schemas.rows.ROW_SCHEMA` that are added to a batch."""
NO_BYTES = Failure(Status.EMPTY, "there are no bytes")


class LabelerActor:
    """Adds labels to the batches of a dataset, in an actor that Ray Data starts:

        labeler = Labeler(["dog", "grass"])
        ds = ray.data.read_binary_files("s3://bucket/images", include_paths=True)
        ds = ds.map_batches(LabelerActor, fn_constructor_args=[labeler], batch_size=8, concurrency=1, num_gpus=1)
        ds.drop_columns(["bytes"]).write_parquet("labels")

    The words are embedded once, in the process that makes the labeler; each actor loads the models. An image that
    cannot be labelled costs no other one its labels: it gets a ``status`` and an ``error``.

    Args:
        labeler: the words, models and settings.
        column: the images: bytes of files, Hugging Face's ``{bytes, path}``, or uint8 arrays. None takes the first of
            the usual names (image, bytes, ...). A column ``path`` names images in messages.
        batch: images that go through the models together on a GPU.
    """

    def __init__(self, labeler: Labeler, column: str | None = None, batch: int = 8) -> None:
        self.labeler, self.column = labeler, column
        set_torch_flags(labeler.on_gpu)
        segmenter, inputs = labeler.load(batch), labeler.spec.inputs
        memory_bytes = math.inf if labeler.on_gpu or not ray.is_initialized() else Cluster.now().node_memory_bytes
        self.batches = SafeBatches(segmenter, segmenter.largest_batch, inputs.patch_size_px, memory_bytes)
        words = labeler.spec.embeddings.background_words
        self.encoder = AnnotationEncoder(labeler.spec.settings, words, labeler.classes)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the columns `ADDED`, in the types of the job's rows. Columns of these names are replaced.

        Args:
            batch: columns by name, in Ray Data's batch format "numpy", its default.

        Raises:
            ValueError: there is no column with images.
        """
        sources = batch[self.column or usual_column(batch)]
        paths = batch.get("path", [""] * len(sources))
        opened = [self.open(source, str(path) or "image") for source, path in zip(sources, paths, strict=True)]
        label_rows(self.batches, self.encoder, [(row, image) for row, image in opened if image is not None])
        rows = [row for row, _ in opened]
        added = {name: pa.array([row.get(name) for row in rows], ROW_SCHEMA.field(name).type) for name in ADDED}
        return dict(batch) | added

    def open(self, source: Any, name: str) -> tuple[Row, Prepared | None]:
        """The row of an image so far, and what the models read; None for an image that cannot be used."""
        row: Row = {"uri": name, "status": Status.OK}
        if isinstance(source, Mapping):
            source = source.get("bytes")
        if source is None or (isinstance(source, bytes) and not source):
            give_up(row, NO_BYTES)
            return row, None
        try:
            prepared = self.labeler.open(source, name).prepared
        except DecodeError as error:
            row |= {"status": error.status, "error": str(error)}
            return row, None
        height, width = prepared.image_hw
        return row | {"width": width, "height": height}, prepared


def usual_column(batch: Mapping[str, Any]) -> str:
    """The first usual name of an image column. Raises ValueError: there is none."""
    found = next((name for name in USUAL_IMAGE_COLUMNS if name in batch), None)
    if found is None:
        raise ValueError(f"no column is called {', '.join(USUAL_IMAGE_COLUMNS)}: name the image column (column=...)")
    return found
