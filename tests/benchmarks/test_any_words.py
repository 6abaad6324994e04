"""The benchmark of any words, on a few drawn images."""

import json
from pathlib import Path

import numpy as np

from benchmarks.any_words import AnyWordsOptions, main
from benchmarks.labelled_folder import class_shares
from cliper.ground_truth import IGNORED
from demo.world.__main__ import main as draw_world


def test_figures_of_drawn_images(tmp_path: Path) -> None:
    world = tmp_path / "world"
    draw_world(world, seed=20_000, images=8)
    options = AnyWordsOptions(
        images=str(world / "images"), masks=str(world / "masks"), classes=str(world / "classes.txt"),
        clip="demo", diffusion="none", sizes=(1, 5, 1000), draws=3, in_images=2,
        json=tmp_path / "figures.json", figure=tmp_path / "figures.svg",
    )  # fmt: skip
    main(options)
    results = json.loads((tmp_path / "figures.json").read_text())
    assert [(result["preset"], result["words"]) for result in results] == [
        ("release", 1), ("release", 5), ("open", 1), ("open", 5),
    ]  # fmt: skip
    for result in results:
        assert result["draws"] == 3
        assert 0 <= result["f1"] <= result["best_f1"] + 5 <= 105
        assert result["map"] > 80, "the demo model knows its world"
        assert ("calibration_error" in result) == (result["preset"] == "open")
    assert (tmp_path / "figures.svg").read_text().startswith("<?xml")


def test_shares_of_classes() -> None:
    truth = np.array([[1, 1, 3], [IGNORED, 2, 0]], np.uint16)
    assert class_shares(truth, 3).tolist() == [2 / 6, 1 / 6, 1 / 6]
