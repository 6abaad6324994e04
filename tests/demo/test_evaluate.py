"""The demo's figures: a hand-made confusion matrix, and the whole command on drawn pictures."""

import json
from pathlib import Path

import pytest
import torch

from demo.evaluate import EvaluateOptions, main, mean_average_precision, mean_iou
from jobs.options import MethodOptions


def test_mean_iou_leaves_out_background_and_names_that_never_occur() -> None:
    confusion = torch.tensor([[9, 0, 0, 0], [1, 3, 0, 0], [0, 2, 4, 0], [0, 0, 0, 0]])
    assert mean_iou(confusion) == pytest.approx((3 / 6 + 4 / 6) / 2)


def test_mean_average_precision_leaves_out_names_that_never_occur() -> None:
    scores = torch.tensor([[1.8, 0.3, 0.2], [0.9, 0.9, 0.3], [1.2, 0.5, 0.1]])
    present = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 0]])
    assert mean_average_precision(scores, present) == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)


def test_figures_are_shares_and_the_same_pictures_give_them_again(
    tiny_clip: Path, tiny_diffusion: Path, tmp_path: Path
) -> None:
    method = MethodOptions(
        clip=f"local-dir:{tiny_clip}", diffusion=str(tiny_diffusion), shorter_side_px=112, score_threshold=0.0
    )
    results = []
    for name in ("first.json", "again.json"):
        main(EvaluateOptions(method, seed=3, pictures=4, height_px=48, width_px=64, json=tmp_path / name))
        results.append(json.loads((tmp_path / name).read_text()))
    first, again = results
    assert first.keys() == {"miou", "map", "pictures", "seconds"}
    assert first["pictures"] == 4
    assert 0 <= first["miou"] <= 1
    assert 0 < first["map"] <= 1
    assert (first["miou"], first["map"]) == (again["miou"], again["map"])
