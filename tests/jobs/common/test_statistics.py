"""Statistics of hand-made cases, and of thresholds beside torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_f1_score, binary_precision, binary_recall

from jobs.common.statistics import (
    best_thresholds,
    mean_average_precision,
    presence_figures,
    segmentation_figures,
    threshold_figures,
)

SCORED = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=30)


def test_with_background_as_a_class() -> None:
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 4, 4]])
    figures = segmentation_figures(confusion, ["background", "cat", "dog"])
    assert figures["iou"] == pytest.approx({"background": 6 / 9, "cat": 3 / 10, "dog": 4 / 8})
    assert figures["miou"] == pytest.approx((6 / 9 + 3 / 10 + 4 / 8) / 3)
    assert figures["pixel_accuracy"] == pytest.approx(13 / 20)
    assert figures["mean_accuracy"] == pytest.approx((6 / 8 + 3 / 4 + 4 / 8) / 3)


def test_without_background_a_pixel_without_a_class_is_wrong() -> None:
    confusion = np.array([[0, 0, 0], [5, 3, 0], [0, 0, 4]])
    figures = segmentation_figures(confusion, ["cat", "dog"])
    assert figures["iou"] == pytest.approx({"cat": 3 / 8, "dog": 1.0})
    assert figures["pixel_accuracy"] == pytest.approx(7 / 12)


def test_a_class_that_the_truth_never_shows_does_not_count() -> None:
    figures = segmentation_figures(np.array([[0, 0, 0], [0, 4, 4], [0, 0, 0]]), ["cat", "dog"])
    assert figures["iou"] == {"cat": 0.5, "dog": None}
    assert (figures["miou"], figures["mean_accuracy"]) == (0.5, 0.5)


def test_nothing_at_all_is_zero_and_no_nan() -> None:
    figures = segmentation_figures(np.zeros((3, 3), np.int64), ["cat", "dog"])
    assert (figures["miou"], figures["pixel_accuracy"], figures["mean_accuracy"]) == (0, 0, 0)


def test_presence_counts_all_decisions_together() -> None:
    scores = np.float32([[1.8, 0.3], [0.9, 0.9], [1.2, 0.5]])
    present = np.array([[1, 1], [0, 1], [1, 0]])
    figures = presence_figures(scores, present, [1.0, 0.4])
    assert (figures["precision"], figures["recall"]) == pytest.approx((3 / 4, 3 / 4))
    assert figures["f1"] == pytest.approx(3 / 4)
    assert figures["map"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)


def test_a_single_class_has_figures_too() -> None:
    figures = presence_figures(np.float32([[0.2], [0.8]]), np.array([[0], [1]]), [0.5])
    assert (figures["map"], figures["f1"]) == (1.0, 1.0)


def test_average_precision_leaves_out_classes_that_never_occur() -> None:
    scores, present = np.float32([[0.5, 0.9], [0.4, 0.1]]), np.array([[1, 0], [0, 0]])
    assert mean_average_precision(scores, present) == 1.0
    assert mean_average_precision(scores, np.zeros((2, 2), np.int64)) == 0.0


@given(scored=SCORED, threshold=st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.9, 1.0]))
def test_figures_are_those_of_torchmetrics(scored: list[tuple[float, bool]], threshold: float) -> None:
    scores = np.array([score for score, _ in scored], np.float32)
    present = np.array([there for _, there in scored])
    found = threshold_figures(scores, present, np.float32([threshold]))[:, 0]
    predicted, target = torch.tensor(scores > np.float32(threshold)).int(), torch.tensor(present).int()
    for ours, theirs in zip(found, (binary_precision, binary_recall, binary_f1_score), strict=True):
        assert (0.0 if np.isnan(ours) else ours) == pytest.approx(float(theirs(predicted, target)))


@given(scored=SCORED)
def test_no_threshold_is_better_than_the_best(scored: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in scored], np.float32)
    present = np.array([there for _, there in scored])
    best = best_thresholds(scores, present)
    best_f1, *others = threshold_figures(scores, present, np.array([best[-1], best[0], 0.0, *scores], np.float32))[2]
    assert np.nan_to_num(others[0]) == np.nan_to_num(best_f1)
    assert all(np.isnan(other) or other <= best_f1 + 1e-12 for other in others)
