"""The benchmark of resolutions, on two drawn images."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import resolution
from benchmarks.resolution import ResolutionOptions, main, mean_iou, object_sizes
from cliper.ground_truth import IGNORED
from demo.world.__main__ import main as draw_world


def test_figures_of_drawn_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"336": {"shorter_side_px": 96}, "336, flip": {"shorter_side_px": 96, "flip": True}}
    monkeypatch.setattr(resolution, "CASES", small)
    world = tmp_path / "world"
    draw_world(world, seed=20_000, images=2)
    options = ResolutionOptions(
        images=str(world / "images"), masks=str(world / "masks"), classes=str(world / "classes.txt"),
        clip="demo", diffusion="none", cases=("336, flip",), timed=1,
        json=tmp_path / "figures.json", figure=tmp_path / "figures.svg",
    )  # fmt: skip
    main(options)
    results = json.loads((tmp_path / "figures.json").read_text())
    cases = [("336", "decided"), ("336, flip", "decided"), ("336", "given"), ("336, flip", "given")]
    assert [(result["case"], result["classes"]) for result in results] == cases
    first, flipped, given, _ = results
    assert given["miou"] >= first["miou"]
    assert first["images"] == flipped["images"] == 2
    assert first["miou"] > 30, "the demo model knows its world"
    assert (first["miou_gain"], first["miou_spread"]) == (0, 0)
    assert abs(flipped["miou"] - first["miou"] - flipped["miou_gain"]) < 0.11
    assert flipped["ms"] > first["ms"] > 0
    assert (tmp_path / "figures.svg").read_text().startswith("<?xml")


def test_a_class_is_as_large_as_its_largest_region() -> None:
    truth = np.full((200, 200), IGNORED)
    truth[:30, :30] = truth[:5, 100:105] = 1  # 900 pixels and 25
    truth[40:72, :32] = 2  # 1,024
    truth[80:176, :96] = 4  # 9,216
    assert object_sizes(truth, np.arange(4)).tolist() == [0, 1, -1, 2]


def test_overlap_by_size_is_a_mean_over_pairs_and_of_all_over_classes() -> None:
    counts = np.array([[[1, 8], [2, 10], [1, 10]], [[0, 9], [2, 10], [2, 10]]])  # hits, true and predicted pixels
    sizes = np.array([[0, 2], [0, 2]])
    assert mean_iou(counts, sizes, 0) == (1 / 2 + 0) / 2
    assert mean_iou(counts, sizes, 2) == (8 / 12 + 9 / 11) / 2
    assert mean_iou(counts, sizes, -1) == (1 / 6 + 17 / 23) / 2
