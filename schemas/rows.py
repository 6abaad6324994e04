"""One row per input image: the Arrow schema of the job's Parquet files.

* ``image_id``: unique over the corpus and stable over runs: path relative to the input, plus the member's name in a
  tar shard or the row number in a table
* ``uri``: where the image's bytes are: a URL, ``tar://MEMBER::URL`` for a tar member (fsspec opens it), or
  ``URL#row=N`` for row N (from 0) of a table
* ``shard``: path of the file that was read, relative to the input
* ``shard_version``: what the storage said of that file before it was read, its size and ETag or time of modification:
  a later run sees from it that the row is outdated
* ``shard_images``: number of rows of the shard, on the row of its last image, null elsewhere: a later run sees from
  it that the shard is complete
* ``passed_over``: on the same row, the shard's members that are no images, counted by ending; null elsewhere
* ``width, height``: pixels, after the EXIF orientation was applied; null if the image could not be decoded
* ``status``: ``ok``, or the kind of the failure (`Status`)
* ``error``: null, or one sentence that says what is wrong
* ``class_scores``: max-pooled image-level score of every class, in vocabulary order; at least 0, may exceed 1 (and
  2); null on failure
* ``refined_classes``: with ``--skip-absent`` the classes, as positions in the vocabulary from 1, whose scores are as
  without it; scores of the others are the maxima of their coarse maps, never less than without. Null otherwise
* ``class_probabilities``: with preset ``open`` the probability of every class that the image shows it, 0 to 1, a
  monotone function of its score; null with other presets and on failure
* ``lost_to``: for up to five absent classes, those with the highest scores, the background word that is more probable
  where the class's map is highest; null on failure, and from methods that do not say
* ``classes``: names of the classes that are present, in vocabulary order; null on failure
* ``allowed_classes``: with ``--allowed-column`` the classes (from 1) that the image's tags name: only they can win.
  Null without the option, and where the tags are null
* ``unknown_tags``: with ``--allowed-column`` the image's tags that are no class
* ``annotations``: one per class that is present, ascending ``category_id``; masks are disjoint; empty if only
  background was found, null on failure

Fields of an annotation, in COCO's terms: ``category_id`` position in the vocabulary, from 1; ``score`` the class's
score; ``area`` pixels of the mask; ``bbox`` x, y, width, height in pixels; ``iscrowd`` 0; ``segmentation`` run-length
encoding with ``size`` height, width and ``counts`` in COCO's compressed form (columns first).
"""

from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 7


class Status(StrEnum):
    """What became of an image."""

    OK = "ok"
    EMPTY = "empty"
    """No bytes, or a null in a table."""
    NOT_AN_IMAGE = "not_an_image"
    """The bytes are no image in a known format."""
    TRUNCATED = "truncated"
    """The image breaks off or is damaged inside."""
    TOO_LARGE = "too_large"
    """More pixels or bytes than the limit."""
    MISSING = "missing"
    """The file was listed but is no longer there."""
    FORBIDDEN = "forbidden"
    """The storage denies access to the file."""
    TIMED_OUT = "timed_out"
    """Decoding took longer than the limit."""
    OUT_OF_MEMORY = "out_of_memory"
    """The image does not fit into memory."""
    CRASHED = "crashed"
    """The image ended the process that decoded it, or again and again the one that labelled it."""
    BAD_COLUMN = "bad_column"
    """What is beside the image and was asked for cannot be read: a sibling or a column that is kept or has its tags."""
    BAD_SCORES = "bad_scores"
    """The models gave scores that are no finite numbers."""
    NO_TRUTH = "no_truth"
    """In an evaluation: the image's mask is missing or cannot be used."""
    BROKEN_SHARD = "broken_shard"
    """The shard is damaged: this row stands for what could not be read of it."""
    NO_IMAGES = "no_images"
    """The shard is sound and holds no images."""


TRANSIENT = frozenset({Status.MISSING, Status.FORBIDDEN, Status.TIMED_OUT, Status.OUT_OF_MEMORY, Status.CRASHED})
"""Transient failures: another attempt may succeed. All other failures are in the bytes themselves."""

SEGMENTATION = pa.struct(
    [
        pa.field("size", pa.list_(pa.int32(), 2), nullable=False),
        pa.field("counts", pa.string(), nullable=False),
    ]
)

ANNOTATION = pa.struct(
    [
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("bbox", pa.list_(pa.float32(), 4), nullable=False),
        pa.field("iscrowd", pa.int8(), nullable=False),
        pa.field("segmentation", SEGMENTATION, nullable=False),
    ]
)

LOST = pa.struct(
    [
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("background", pa.string(), nullable=False),
    ]
)

PASSED_OVER = pa.struct(
    [
        pa.field("ending", pa.string(), nullable=False),
        pa.field("files", pa.int64(), nullable=False),
    ]
)

ROW_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("shard_version", pa.string()),
        pa.field("shard_images", pa.int32()),
        pa.field("passed_over", pa.list_(PASSED_OVER)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("class_scores", pa.list_(pa.float32())),
        pa.field("refined_classes", pa.list_(pa.int32())),
        pa.field("class_probabilities", pa.list_(pa.float32())),
        pa.field("lost_to", pa.list_(LOST)),
        pa.field("classes", pa.list_(pa.string())),
        pa.field("allowed_classes", pa.list_(pa.int32())),
        pa.field("unknown_tags", pa.list_(pa.string())),
        pa.field("annotations", pa.list_(ANNOTATION)),
    ]
)
"""A job that keeps columns of its input has them after these."""
