"""Thresholds for every class, or the probability of presence, fitted on labelled images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Shaped
from scipy.optimize import minimize

from cliper.settings import presence_probability
from cluster.output.folder import Output
from jobs.common.statistics import best_thresholds, intersection_over_union, threshold_figures
from jobs.evaluation.figures import EvaluationCounts, add_counts, read_rows
from schemas.evaluation import VALUE_STEPS
from schemas.settings_file import SettingsFile


def fit_presence(
    scores: Float[np.ndarray, "images classes"], present: Shaped[np.ndarray, "images classes"]
) -> dict[str, float]:
    """The curve from scores to probabilities (`cliper.settings.OpenDefaults`) that fits best.

    On true frequencies, the decision with the best F1 is half of that F1 (Lipton et al. 2014). Images that show a class
    are weighted so that this decision is at 0.5. Probabilities in the middle are therefore above the frequencies.

    Args:
        scores: at least 0.
        present: nonzero where the image shows the class, somewhere and not everywhere.
    """
    flat, shown = scores.ravel(), present.ravel() > 0
    best_f1 = threshold_figures(flat, shown, best_thresholds(flat, shown)[:1])[2, 0]
    weight = (2 - best_f1) / best_f1

    def loss(logs: np.ndarray) -> float:
        probability = presence_probability(flat, *np.exp(logs)).clip(1e-6, 1 - 1e-6)
        return float(-np.where(shown, weight * np.log(probability), np.log1p(-probability)).mean())

    midpoint, slope = np.exp(minimize(loss, np.log([0.3, 1.5]), method="Nelder-Mead").x)
    return {"presence_midpoint": round(float(midpoint), 4), "presence_slope": round(float(slope), 3)}


def choose_score_thresholds(
    file: SettingsFile, class_names: Sequence[str], counts: EvaluationCounts, common: float
) -> SettingsFile:
    """A settings file with, for each class, the score threshold with the best image-level F1 on a labelled sample.

    A class that the sample never shows gets the ``common`` threshold.
    """
    classes = dict(file.classes)
    for index, name in enumerate(class_names):
        scores, present = counts.scores[:, index], counts.present[:, index] > 0
        chosen = best_score_threshold(scores, present) if present.any() else common
        classes[name] = classes.get(name, {}) | {"score_threshold": round(chosen, 4)}
    return replace(file, classes=classes)


def best_score_threshold(scores: np.ndarray, present: np.ndarray) -> float:
    """The lowest threshold with the best F1, halfway between the scores that it separates.

    ``scores`` are float32, at least 0, and ``present`` is bool [images].
    """
    below = best_thresholds(scores, present)[0]
    above = scores[scores > below].min(initial=scores.max())
    return (float(below) + float(above)) / 2


def choose_background_thresholds(
    file: SettingsFile, class_names: Sequence[str], output: Output, counts: EvaluationCounts
) -> SettingsFile:
    """A settings file with, for each class, the threshold on its map's value with the best intersection over union.

    The threshold of a class decides whether a pixel that the class wins becomes background. Which class wins is taken
    as given. Every class can therefore be looked at alone. ``output`` has the rows of an evaluation with
    ``threshold_histogram``.
    """
    pixels, hits = np.zeros((2, len(class_names), VALUE_STEPS), np.int64)
    for rows in read_rows(output):
        add_counts(pixels, rows["threshold_histogram"], ("class", "step"), "pixels")
        add_counts(hits, rows["threshold_histogram"], ("class", "step"), "hits")
    truth = counts.confusion.sum(axis=1)[1:].tolist()
    classes = dict(file.classes)
    for index, name in enumerate(class_names):
        if truth[index]:
            step = best_step(pixels[index], hits[index], truth[index])
            classes[name] = classes.get(name, {}) | {"background_threshold": step / VALUE_STEPS}
    return replace(file, classes=classes)


def best_step(pixels: np.ndarray, hits: np.ndarray, truth: int) -> int:
    """The first step to keep, so that intersection over union is largest.

    Args:
        pixels: pixels that the class wins, by step of its value.
        hits: those of them that are the class's.
        truth: all of the class's pixels.
    """
    kept, right = pixels[::-1].cumsum()[::-1], hits[::-1].cumsum()[::-1]
    return int(np.argmax(intersection_over_union(right, truth, kept)))
