"""Figures of hand-made cases."""

import pytest
import torch

from cliper.metrics import mean_average_precision, presence_figures, segmentation_figures


def test_with_background_as_a_class() -> None:
    confusion = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 4, 4]])
    figures = segmentation_figures(confusion, ["background", "cat", "dog"])
    assert figures.iou == pytest.approx({"background": 6 / 9, "cat": 3 / 10, "dog": 4 / 8})
    assert figures.miou == pytest.approx((6 / 9 + 3 / 10 + 4 / 8) / 3)
    assert figures.pixel_accuracy == pytest.approx(13 / 20)
    assert figures.mean_accuracy == pytest.approx((6 / 8 + 3 / 4 + 4 / 8) / 3)


def test_without_background_a_pixel_without_a_class_is_wrong() -> None:
    confusion = torch.tensor([[0, 0, 0], [5, 3, 0], [0, 0, 4]])
    figures = segmentation_figures(confusion, ["cat", "dog"])
    assert figures.iou == pytest.approx({"cat": 3 / 8, "dog": 1.0})
    assert figures.pixel_accuracy == pytest.approx(7 / 12)


def test_a_class_that_the_truth_never_shows_does_not_count() -> None:
    figures = segmentation_figures(torch.tensor([[0, 0, 0], [0, 4, 4], [0, 0, 0]]), ["cat", "dog"])
    assert figures.iou == {"cat": 0.5, "dog": None}
    assert (figures.miou, figures.mean_accuracy) == (0.5, 0.5)


def test_nothing_at_all_is_zero_and_no_nan() -> None:
    figures = segmentation_figures(torch.zeros(3, 3, dtype=torch.int64), ["cat", "dog"])
    assert (figures.miou, figures.pixel_accuracy, figures.mean_accuracy) == (0, 0, 0)


def test_presence_counts_all_decisions_together() -> None:
    scores = torch.tensor([[1.8, 0.3], [0.9, 0.9], [1.2, 0.5]])
    present = torch.tensor([[1, 1], [0, 1], [1, 0]])
    figures = presence_figures(scores, present, torch.tensor([1.0, 0.4]))
    assert (figures.precision, figures.recall) == pytest.approx((3 / 4, 3 / 4))
    assert figures.f1 == pytest.approx(3 / 4)
    assert figures.map == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)


def test_a_single_class_has_figures_too() -> None:
    figures = presence_figures(torch.tensor([[0.2], [0.8]]), torch.tensor([[0], [1]]), torch.tensor([0.5]))
    assert (figures.map, figures.f1) == (1.0, 1.0)


def test_average_precision_leaves_out_classes_that_never_occur() -> None:
    scores, present = torch.tensor([[0.5, 0.9], [0.4, 0.1]]), torch.tensor([[1, 0], [0, 0]])
    assert mean_average_precision(scores, present) == 1.0
    assert mean_average_precision(scores, torch.zeros(2, 2, dtype=torch.int64)) == 0.0
