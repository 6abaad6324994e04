"""Thresholds from hand-made counts."""

import numpy as np
import pytest

from jobs.evaluation.calibration import best_score_threshold, best_step, choose_score_thresholds
from jobs.evaluation.figures import EvaluationCounts
from schemas.settings_file import SettingsFile


@pytest.mark.parametrize(
    ("scores", "present", "expected"),
    [
        ([0.1, 0.3, 0.7, 0.9], [0, 0, 1, 1], 0.5),
        ([0.1, 1.0, 2.0], [0, 0, 1], 1.5),
        ([0.4, 0.6], [1, 1], 0.2),
        ([0.2, 0.5, 0.6, 0.8], [0, 1, 0, 1], 0.35),
    ],
)
def test_the_score_threshold_separates_with_the_best_f1(
    scores: list[float], present: list[int], expected: float
) -> None:
    found = best_score_threshold(np.array(scores, np.float32), np.array(present))
    assert found == pytest.approx(expected, abs=1e-5)


def test_classes_that_the_sample_never_shows_keep_the_common_threshold() -> None:
    scores, present = np.array([[0.2, 0.9], [0.8, 0.9]], np.float32), np.array([[0, 0], [1, 0]])
    sums = EvaluationCounts(np.zeros((3, 3), np.int64), scores, present, failed=0, seconds=1.0, coarser=0)
    file = choose_score_thresholds(SettingsFile({"logit_scale": 9}), ["cat", "dog"], sums, common=0.7)
    assert file.settings == {"logit_scale": 9}
    assert file.classes["cat"]["score_threshold"] == pytest.approx(0.5)
    assert file.classes["dog"] == {"score_threshold": 0.7}


def test_the_first_step_to_keep_has_the_best_iou() -> None:
    pixels, hits = np.array([50, 10, 10, 10]), np.array([0, 2, 9, 10])
    assert best_step(pixels, hits, truth=22) == 2
    assert best_step(pixels, pixels, truth=80) == 0
