"""Quality of thresholds, beside torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_f1_score, binary_precision, binary_recall

from jobs.filtering.statistics import best_threshold, quality

SCORED = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=30)


@given(scored=SCORED, threshold=st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.9, 1.0]))
def test_figures_are_those_of_torchmetrics(scored: list[tuple[float, bool]], threshold: float) -> None:
    scores = np.array([score for score, _ in scored], np.float32)
    present = np.array([there for _, there in scored])
    found = quality(scores, present, np.float32([threshold]))[:, 0]
    predicted, target = torch.tensor(scores > np.float32(threshold)).int(), torch.tensor(present).int()
    for ours, theirs in zip(found, (binary_precision, binary_recall, binary_f1_score), strict=True):
        assert (0.0 if np.isnan(ours) else ours) == pytest.approx(float(theirs(predicted, target)))


@given(scored=SCORED)
def test_no_threshold_is_better_than_the_best(scored: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in scored], np.float32)
    present = np.array([there for _, there in scored])
    best = best_threshold(scores, present)
    best_f1, *others = quality(scores, present, np.array([best, 0.0, *scores], np.float32))[2]
    assert all(np.isnan(other) or other <= best_f1 + 1e-12 for other in others)
