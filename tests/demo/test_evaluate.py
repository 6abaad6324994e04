"""The demo's figures: hand-made pictures, and the whole command on drawn ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.evaluate import EvaluateOptions, main
from demo.metrics import Scoreboard, class_iou
from demo.tables import OTHER_VOCABULARIES
from demo.world.names import CATEGORY, PAINTS
from demo.world.scene import draw
from jobs.common.options import MethodOptions


def test_iou_leaves_out_background_and_names_that_never_occur() -> None:
    confusion = torch.tensor([[9, 0, 0, 0], [1, 3, 0, 0], [0, 2, 4, 0], [0, 0, 0, 0]])
    shares = class_iou(confusion)
    assert shares[:2].tolist() == pytest.approx([3 / 6, 4 / 6])
    assert torch.isnan(shares[2])


def test_a_hand_made_scoreboard() -> None:
    board = Scoreboard(categories=3, score_threshold=0.5)
    truth = np.array([[1, 1], [2, 0]])
    board.add(np.array([[1, 2], [2, 0]]), np.array([0.9, 0.8, 0.1]), truth)
    board.add(np.array([[1, 1], [0, 0]]), np.array([0.7, 0.2, 0.6]), truth)
    figures = board.figures(seconds=1.5)
    assert board.iou() == [pytest.approx(3 / 4), pytest.approx(1 / 3), None]
    assert figures.miou == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert (figures.precision, figures.recall, figures.f1) == (3 / 4, 3 / 4, 3 / 4)
    assert (figures.pictures, figures.seconds) == (2, 1.5)


def test_other_vocabularies_know_what_was_drawn() -> None:
    words, described, paints = OTHER_VOCABULARIES.values()
    drawn = [draw(seed, 96, 128) for seed in range(40)]
    for picture in drawn:
        vehicles = np.isin(picture.labels, [CATEGORY["car"], CATEGORY["boat"]])
        assert np.array_equal(words.truth(picture) == 2, vehicles)
        assert np.array_equal(described.truth(picture), words.truth(picture))
        coloured = {paint for number, paint in enumerate(PAINTS, 1) if (paints.truth(picture) == number).any()}
        assert all(paint in picture.caption for paint in coloured)
        assert (paints.truth(picture)[picture.labels == CATEGORY["sky"]] == 0).all()
    assert any((paints.truth(picture) > 0).any() for picture in drawn)


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
    assert first.keys() >= {"miou", "map", "pictures", "seconds"}
    assert first["pictures"] == 4
    assert 0 <= first["miou"] <= 1
    assert 0 < first["map"] <= 1
    assert (first["miou"], first["map"]) == (again["miou"], again["map"])
