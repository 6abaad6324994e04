"""From a prediction to what a row of the labelling job says of an image."""

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import numpy as np

from cliper.segmenter import Prediction
from cliper.settings import MethodSettings
from schemas.runs import annotations_from_runs

NOT_FINITE = "the models gave scores that are no finite numbers (--precision fp32 may help)"
MOST_LOST = 5
"""Absent classes, highest scores first, for which a row says what they lost to."""


def label_columns(
    prediction: Prediction, settings: MethodSettings, background: Sequence[str], class_names: Sequence[str]
) -> dict[str, Any]:
    """The columns of `schemas.rows.ROW_SCHEMA` that labelling adds. The cost grows with the runs, not with the pixels.

    Args:
        prediction: of an image.
        settings: of the method; preset ``open`` has probabilities.
        background: the background words, one per background row of the method's queries.
        class_names: in vocabulary order.
    """
    runs, scores = prediction.runs, prediction.scores
    annotations = annotations_from_runs(runs.starts, runs.labels, runs.image_hw, scores)
    present = {annotation["category_id"] - 1 for annotation in annotations}
    return {
        "class_scores": scores,
        "refined_classes": None if prediction.refined is None else [index + 1 for index in prediction.refined],
        "class_probabilities": settings.probabilities(scores),
        "lost_to": lost_words(prediction, present, background),
        "classes": [class_names[index] for index in sorted(present)],
        "annotations": annotations,
    }


def lost_words(
    prediction: Prediction, present: Collection[int], background: Sequence[str]
) -> list[dict[str, Any]] | None:
    """See column ``lost_to`` of `schemas.rows`; ``present`` holds classes from 0."""
    if prediction.lost_to is None:
        return None
    absent = (index for index in np.argsort(-prediction.scores).tolist() if index not in present)
    lost = ((index, prediction.lost_to[index]) for index in islice(absent, MOST_LOST))
    return [{"category_id": index + 1, "background": background[word]} for index, word in lost if word >= 0]
