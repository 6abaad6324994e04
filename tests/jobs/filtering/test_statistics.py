"""Quality of thresholds, beside torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_f1_score, binary_precision, binary_recall

from jobs.filtering.statistics import best_quality, quality

SCORED = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=30)


@given(scored=SCORED, threshold=st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.9, 1.0]))
def test_figures_are_those_of_torchmetrics(scored: list[tuple[float, bool]], threshold: float) -> None:
    scores = np.array([score for score, _ in scored], np.float32)
    truth = np.array([there for _, there in scored])
    found = quality(scores, truth, threshold)
    predicted, target = torch.tensor(scores > threshold).int(), torch.tensor(truth).int()
    for ours, theirs in (
        (found.precision, binary_precision), (found.recall, binary_recall), (found.f1, binary_f1_score),
    ):  # fmt: skip
        assert (0.0 if np.isnan(ours) else ours) == pytest.approx(float(theirs(predicted, target)))


@given(scored=SCORED)
def test_no_threshold_is_better_than_the_best(scored: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in scored], np.float32)
    truth = np.array([there for _, there in scored])
    best = best_quality(scores, truth)
    for threshold in {0.0, *(float(score) for score in scores)}:
        other = quality(scores, truth, threshold).f1
        assert np.isnan(other) or other <= best.f1 + 1e-12
