"""The benchmark measures both variants, and they agree."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import agreement, roofline, speed
from benchmarks.idle import Idle
from benchmarks.speed import STAGES, BenchmarkOptions, append, main
from benchmarks.variants import RUNS
from cliper.preprocess import InputSpec

RESULTS = Path(speed.__file__).with_name("results.csv")


def test_the_idle_model_labels_rectangles_of_all_classes(tmp_path: Path) -> None:
    inputs = InputSpec(32, 16)
    images = [inputs.prepare(Image.new("RGB", (50, 37)), seed) for seed in range(4)]
    found = Idle(inputs, 5, tmp_path / "clock").predict(images)
    assert [single.runs.image_hw for single in found] == [(37, 50)] * 4
    assert {label for single in found for label in single.runs.labels.tolist()} == set(range(6))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure without processes, whose start takes longer than the demo models, and as little as possible."""
    monkeypatch.setattr(speed, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(agreement, "IMAGES", 1)
    monkeypatch.setattr(roofline, "IN_A_ROW", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_rows_of_both_variants_with_stages_floors_and_agreement(tmp_path: Path) -> None:
    collected = tmp_path / "results.csv"
    collected.write_text(RESULTS.read_text().partition("\n")[0] + "\n")
    options = BenchmarkOptions(
        device="cpu", clip=("demo",), compensation=("product",), classes=(5,), batch_sizes=(1,), image_size=("128x96",),
        precision="fp32", repeats=1, json=tmp_path / "rows.json", results=collected,
    )  # fmt: skip
    main(options)
    rows = json.loads((tmp_path / "rows.json").read_text())
    of_stage = {variant: {row["stage"]: row for row in rows if row["variant"] == variant} for variant in RUNS}
    assert list(of_stage["literal"]) == ["total", "compensation"]
    assert list(of_stage["fast"]) == ["total", *STAGES, "decode", "rle", "actor", "end to end"]
    fast = {name: row["ms_per_image"] for name, row in of_stage["fast"].items()}
    assert sum(fast[name] for name in STAGES) == pytest.approx(fast["total"])
    assert all(row["agreement"] > 0.99 for row in rows)
    assert all(row["ms_per_image"] == pytest.approx(1000 / row["images_per_second"]) for row in rows)
    assert all(0.1 < row["peak_memory_gb"] < 100 for row in rows)
    for name in ("total", "clip", "vae", "unet", "compensation", "labels"):
        row = of_stage["fast"][name]
        assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["ms_per_image"])
        assert row["share_of_floor"] >= max(row["share_of_arithmetic"], row["share_of_bytes"]) - 1e-9
    assert of_stage["literal"]["total"]["floor_ms"] is None
    with collected.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["stage"] for row in read] == [row["stage"] for row in rows]
    assert all(row["date"] and row["commit"] and "torch=" in row["versions"] for row in read)


def test_rows_do_not_get_into_other_columns(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("date,stage\n")
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        append(tmp_path / "results.csv", [{"stage": "clip"}])
