"""The benchmark measures both variants, and they agree."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.idle import Idle
from benchmarks.speed import BenchmarkOptions, main
from cliper.preprocess import InputSpec


def test_the_idle_model_labels_rectangles_of_all_classes(tmp_path: Path) -> None:
    inputs = InputSpec(32, 16)
    images = [inputs.prepare(Image.new("RGB", (50, 37)), seed) for seed in range(4)]
    found = Idle(inputs, 5, tmp_path / "clock").predict(images)
    assert [single.runs.image_hw for single in found] == [(37, 50)] * 4
    assert {label for single in found for label in single.runs.labels.tolist()} == set(range(6))


@pytest.mark.slow
def test_rows_of_both_variants_with_stages_and_agreement(tmp_path: Path) -> None:
    options = BenchmarkOptions(
        device="cpu", clip="demo", compensation="product", classes="5", repeats=1, height_px=96, width_px=128,
        json=tmp_path / "rows.json", results=tmp_path / "results.csv",
    )  # fmt: skip
    main(options)
    rows = json.loads((tmp_path / "rows.json").read_text())
    names = """variant stage device clip compensation batch_size classes precision images_per_second ms_per_image
        peak_memory_gb agreement"""
    assert all(row.keys() >= set(names.split()) for row in rows)
    stages = {variant: [row["stage"] for row in rows if row["variant"] == variant] for variant in ("literal", "fast")}
    assert stages["literal"] == ["total", "compensation"]
    assert stages["fast"] == [
        "total", "preprocess", "clip", "vae", "unet", "compensation", "labels", "decode", "rle",
    ]  # fmt: skip
    assert all(row["agreement"] > 0.99 for row in rows)
    assert all(row["ms_per_image"] == pytest.approx(1000 / row["images_per_second"]) for row in rows)
    assert all(0.1 < row["peak_memory_gb"] < 100 for row in rows)
    with (tmp_path / "results.csv").open(newline="") as file:
        collected = list(csv.DictReader(file))
    assert [row["stage"] for row in collected] == [row["stage"] for row in rows]
    assert all(row["date"] and row["commit"] and "torch=" in row["versions"] for row in collected)
