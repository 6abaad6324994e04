"""From predictions to rows: the annotations of a labelling job, or the counts of an evaluation."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from cliper.ground_truth import IGNORED, unpack_truth
from cliper.rows import label_columns
from cliper.segmenter import Prediction
from cliper.settings import MethodSettings
from schemas.evaluation import EVALUATION_SCHEMA, VALUE_STEPS
from schemas.rows import ROW_SCHEMA
from schemas.runs import labels_from_runs

Row = dict[str, Any]


class Encoder(Protocol):
    """What becomes of a prediction.

    Attributes:
        schema: of the rows.
        keep_winners: predictions must hold `cliper.segmenter.Winners`.
    """

    schema: ClassVar[pa.Schema]

    @property
    def keep_winners(self) -> bool: ...

    def allowed(self, row: Row) -> Collection[int] | None:
        """The classes (from 0) that may win in an image; None allows all."""

    def encode(self, row: Row, prediction: Prediction, seconds: float) -> Row:
        """The columns that labelling adds to a row.

        Args:
            row: of `cluster.corpus.prepare.PREPARED_SCHEMA`, without pixels.
            prediction: of its image.
            seconds: that labelling took.
        """


@dataclass(frozen=True)
class AnnotationEncoder:
    """COCO annotations, as `schemas.rows.ROW_SCHEMA`.

    Attributes:
        settings: of the method; preset ``open`` has probabilities.
        background: the background words, one per background row of the method's queries.
        class_names: in vocabulary order. Tags name classes, in upper or lower case.
    """

    schema: ClassVar[pa.Schema] = ROW_SCHEMA
    settings: MethodSettings
    background: Sequence[str]
    class_names: Sequence[str]
    keep_winners = False

    @cached_property
    def class_of(self) -> dict[str, int]:
        """Classes from 0 by their names, and by these in lower case."""
        numbered = {name: index for index, name in enumerate(self.class_names)}
        return {name.casefold(): index for name, index in numbered.items()} | numbered

    def class_named(self, tag: str) -> int | None:
        return self.class_of.get(tag, self.class_of.get(tag.casefold()))

    def allowed(self, row: Row) -> Collection[int] | None:
        """The classes that the image's tags name, if it has tags."""
        tags = row.get("tags")
        return None if tags is None else {found for tag in tags if (found := self.class_named(tag)) is not None}

    def encode(self, row: Row, prediction: Prediction, seconds: float) -> Row:
        """See `Encoder.encode`; the cost grows with the runs, not with the pixels."""
        allowed, tags = self.allowed(row), row.get("tags")
        return label_columns(prediction, self.settings, self.background, self.class_names) | {
            "allowed_classes": None if allowed is None else sorted(index + 1 for index in allowed),
            "unknown_tags": None if tags is None else [tag for tag in tags if self.class_named(tag) is None],
        }


@dataclass(frozen=True)
class CountsEncoder:
    """Counts beside the ground truth, as `schemas.evaluation.EVALUATION_SCHEMA`; masks do not leave the actor.

    Attributes:
        classes: number of classes.
        given_labels: tell the method which classes an image shows (paper table 3).
        keep_winners: also count what thresholds on map values would change.
    """

    schema: ClassVar[pa.Schema] = EVALUATION_SCHEMA
    classes: int
    given_labels: bool
    keep_winners: bool

    def allowed(self, row: Row) -> Collection[int] | None:
        """The classes that the ground truth shows, if they are to be given."""
        return {label - 1 for label in labels_in(truth_of(row)) if label} if self.given_labels else None

    def encode(self, row: Row, prediction: Prediction, seconds: float) -> Row:
        """See `Encoder.encode`."""
        truth, runs = truth_of(row), prediction.runs
        predicted = labels_from_runs(runs.starts, runs.labels, runs.image_hw)
        return {
            "class_scores": prediction.scores,
            "present": labels_in(truth),
            "seconds": seconds,
            "confusion": confusion(truth, predicted, self.classes + 1),
            "threshold_histogram": threshold_histogram(truth, *prediction.winners) if prediction.winners else None,
        }


def truth_of(row: Row) -> np.ndarray:
    return unpack_truth(row["ground_truth"], (row["height"], row["width"]))


def labels_in(truth: np.ndarray) -> list[int]:
    """The labels in a ground truth, ascending."""
    return sorted(set(np.unique(truth).tolist()) - {IGNORED})


def confusion(truth: np.ndarray, predicted: np.ndarray, labels: int) -> list[dict[str, int]]:
    """Pixels by true and predicted label, as `schemas.evaluation.CONFUSION`.

    Args:
        truth: integers [height, width], 0 to ``labels - 1`` or `IGNORED`.
        predicted: integers [height, width], 0 to ``labels - 1``.
        labels: number of labels.
    """
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * labels + predicted[counted]
    found, pixels = np.unique(pairs, return_counts=True)
    return [
        {"truth": pair // labels, "predicted": pair % labels, "pixels": count}
        for pair, count in zip(found.tolist(), pixels.tolist(), strict=True)
    ]


def threshold_histogram(truth: np.ndarray, value: np.ndarray, labels: np.ndarray) -> list[dict[str, int]]:
    """How often each class wins at each step of its value, and how often rightly (`schemas.evaluation.THRESHOLD_STEP`).

    Args:
        truth: integers [height, width], or `IGNORED`.
        value: float [height, width], the winner's value.
        labels: integers [height, width], the winner's label; 0 where there is none.
    """
    counted = (truth != IGNORED) & (labels > 0)
    step = np.minimum((value[counted] * VALUE_STEPS).astype(np.int64), VALUE_STEPS - 1)
    keys = (labels[counted].astype(np.int64) - 1) * VALUE_STEPS + step
    found, where, pixels = np.unique(keys, return_inverse=True, return_counts=True)
    hits = np.bincount(where, weights=truth[counted] == labels[counted], minlength=len(found))
    return [
        {"class": key // VALUE_STEPS, "step": key % VALUE_STEPS, "pixels": count, "hits": int(hit)}
        for key, count, hit in zip(found.tolist(), pixels.tolist(), hits.tolist(), strict=True)
    ]
