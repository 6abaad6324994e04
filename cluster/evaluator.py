"""Evaluation on Ray: labelled pictures in, one row of counts per picture out; masks do not leave the actor."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from ray.actor import ActorHandle

from cluster import prometheus
from cluster.actors import TOO_LARGE_FOR_GPU, AnnotatorSpec, BaselineSpec, load_models, pixels_of, winning_classes_of
from cluster.corpus.decode import DECODED_SCHEMA, decode_batch
from cluster.corpus.ground_truth import IGNORED, TruthError
from cluster.corpus.labelled import LabelledCorpus, read_truth
from cluster.progress import report
from schemas.evaluation import EVALUATION_SCHEMA, VALUE_STEPS
from schemas.rows import Status

WITH_TRUTH = DECODED_SCHEMA.append(pa.field("truth", pa.large_binary()))
"""Decoded pictures with ``truth``: height x width uint16, label of every pixel or `IGNORED`."""


@dataclass(frozen=True)
class EvaluatorSpec:
    """What an evaluating actor needs to know.

    Attributes:
        models: the method and its models.
        classes: number of classes.
        given_labels: tell the method which classes a picture shows (paper table 3).
        winners: also count what thresholds on map values would change.
    """

    models: AnnotatorSpec | BaselineSpec
    classes: int
    given_labels: bool
    winners: bool


def decode_labelled_batch(records: pa.Table, labelled: LabelledCorpus, background: bool) -> pa.Table:
    """Decode pictures and read their masks.

    Args:
        records: batch of `cluster.corpus.readers.Record`.
        labelled: the data set.
        background: the data set's truth has background as label 0; else its first class moves up to label 1.

    Raises:
        OSError: the storage failed.
    """
    rows = decode_batch(records, labelled.corpus.limits).to_pylist()
    for row in rows:
        row["truth"] = None
        if row["status"] != Status.OK:
            continue
        try:
            truth = read_truth(labelled, row["image_id"])
            if truth.shape != (row["height"], row["width"]):
                sizes = (truth.shape[1], truth.shape[0], row["width"], row["height"])
                raise TruthError("the mask has {} x {} pixels, the picture {} x {}".format(*sizes))
        except TruthError as error:
            row |= {"status": Status.NO_TRUTH, "error": f"{row['uri']}: {error}", "rgb": None}
            continue
        if not background:
            truth = np.where(truth == IGNORED, truth, truth + 1)
        row["truth"] = truth.astype(np.uint16).tobytes()
    return pa.Table.from_pylist(rows, schema=WITH_TRUTH)


class Evaluator:
    """A Ray Data actor: decoded labelled pictures in, rows of `schemas.evaluation.EVALUATION_SCHEMA` out."""

    def __init__(self, spec: EvaluatorSpec, counter: ActorHandle) -> None:
        self.spec, self.batches, self.counter = spec, load_models(spec.models), counter

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        decoded = [row for row in rows if row["status"] == Status.OK]
        truths = [np.frombuffer(row.pop("truth"), np.uint16).reshape(row["height"], row["width"]) for row in decoded]
        present = [sorted(set(np.unique(truth).tolist()) - {IGNORED}) for truth in truths]
        allowed = [{label - 1 for label in labels} for labels in present] if self.spec.given_labels else None
        images = [pixels_of(row) for row in decoded]
        started = time.monotonic()
        annotations = self.batches.annotate(images, [row["seed"] for row in decoded], allowed)
        seconds = (time.monotonic() - started) / max(len(decoded), 1)
        for row, truth, labels, annotation in zip(decoded, truths, present, annotations, strict=True):
            if annotation is None:
                row |= {"status": Status.OUT_OF_MEMORY, "error": f"{row['uri']}: {TOO_LARGE_FOR_GPU}"}
                continue
            row["class_scores"] = annotation.scores.cpu().numpy()
            row["present"], row["seconds"] = labels, seconds
            row["confusion"] = confusion(truth, annotation.labels.cpu().numpy(), self.spec.classes + 1)
            if self.spec.winners:
                row["winners"] = winners(truth, *winning_classes_of(self.batches.cliper, annotation, truth.shape))
        prometheus.add_images(row["status"] for row in rows)
        ok = sum(row["status"] == Status.OK for row in rows)
        report(self.counter, ok=ok, failed=len(rows) - ok)
        return pa.Table.from_pylist(rows, schema=EVALUATION_SCHEMA)


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


def winners(truth: np.ndarray, value: np.ndarray, labels: np.ndarray) -> list[dict[str, int]]:
    """How often each class wins at each step of its value, and how often rightly, as `schemas.evaluation.WINNERS`.

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
