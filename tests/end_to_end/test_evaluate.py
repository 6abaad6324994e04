"""The evaluation as a user runs it, on drawn images with the demo's models."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cliper.preprocess import InputSpec
from cluster.output.folder import Output
from cluster.storage import open_location
from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.evaluate import main
from jobs.evaluation.figures import EvaluationCounts, count_rows
from tests.support.jobs import ROOT, SharedRay
from tests.support.labelled_world import UNLABELLED, export
from tests.support.patience import wait_until

IMAGES = 16
DEMO = ["--clip", "demo", "--diffusion", "demo"]
KEYS = {
    "miou", "pixel_accuracy", "mean_accuracy", "iou", "map", "f1", "precision", "recall", "images", "seconds_per_image",
    "published",
    "differs_from_published",
    "images_seen",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A folder of drawn images and masks, as flags."""
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for seed in range(IMAGES):
        drawn = draw(seed, 96, 128)
        Image.fromarray(drawn.image).save(folder / f"images/{seed:03}.png")
        Image.fromarray(drawn.labels.astype(np.uint8)).save(folder / f"masks/{seed:03}.png")
    (folder / "classes.txt").write_text("\n".join(NAMES))
    paths = ["--images", folder / "images", "--masks", folder / "masks", "--classes", folder / "classes.txt"]
    return ["--dataset", "folder", *map(str, paths)]


Evaluate = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def evaluate(ray_here: SharedRay) -> Evaluate:
    """Runs the job; returns the figures and what was printed."""

    def run(output: Path, *flags: str) -> tuple[dict[str, Any], str]:
        target = output.with_suffix(".json")
        ended = ray_here.run(main, *flags, "--output", str(output), "--json", str(target))
        assert ended.returncode == 0, ended.stderr
        return json.loads(target.read_text()), ended.stdout

    return run


def sums(output: Path, classes: int) -> EvaluationCounts:
    (folder,) = output.iterdir()
    return count_rows(Output(open_location(str(folder), "")), classes, InputSpec(336, 16))


@pytest.fixture(scope="module")
def evaluated(
    evaluate: Evaluate, drawn: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The rows of one evaluation and its figures."""
    output = tmp_path_factory.mktemp("evaluated") / "rows"
    return output, evaluate(output, *drawn, *DEMO)[0]


def test_figures_are_complete_and_good(evaluated: tuple[Path, dict[str, Any]]) -> None:
    figures = evaluated[1]
    assert figures.keys() >= KEYS
    assert figures["images"] == IMAGES
    assert figures["published"] is None
    assert figures["iou"].keys() == {"background", *NAMES}
    assert figures["miou"] > 35
    assert figures["map"] > 90
    assert figures["seconds_per_image"] > 0


@pytest.mark.long
def test_two_workers_give_the_same_confusion_matrix(
    evaluate: Evaluate, evaluated: tuple[Path, dict[str, Any]], drawn: list[str], tmp_path: Path
) -> None:
    evaluate(tmp_path / "two", *drawn, *DEMO, "--actors", "2", "--batch-size", "3")
    one, two = sums(evaluated[0], len(NAMES)), sums(tmp_path / "two", len(NAMES))
    assert one.confusion.sum() == IMAGES * 96 * 128
    assert np.array_equal(one.confusion, two.confusion)


@pytest.mark.long
def test_a_killed_evaluation_goes_on(
    evaluate: Evaluate, evaluated: tuple[Path, dict[str, Any]], drawn: list[str], tmp_path: Path
) -> None:
    flags = [*drawn, *DEMO, "--rows-per-file", "2", "--batch-size", "1"]
    job = subprocess.Popen(
        [sys.executable, "jobs/evaluate.py", *flags, "--output", str(tmp_path / "killed")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = "killed/*/_checkpoint/*/*.parquet"
    wait_until(lambda: any(".pending." not in path.name for path in tmp_path.glob(checkpoints)), job, 0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not list(tmp_path.glob("killed/*/_SUCCESS")), "the job was done before it was killed"
    again, printed = evaluate(tmp_path / "killed", *flags)
    assert "Continuing:" in printed
    expected = evaluated[1]
    unlike = {"seconds_per_image"}
    assert {key: again[key] for key in again.keys() - unlike} == {
        key: expected[key] for key in expected.keys() - unlike
    }


@pytest.mark.long
def test_given_labels_and_baselines_run_in_the_same_harness(
    evaluate: Evaluate, evaluated: tuple[Path, dict[str, Any]], drawn: list[str], tmp_path: Path
) -> None:
    given, _ = evaluate(tmp_path / "given", *drawn, *DEMO, "--given-labels")
    assert given["miou"] > evaluated[1]["miou"], "who knows which classes are there labels better"
    found = {
        harness: evaluate(tmp_path / harness, *drawn, *DEMO, "--method", "sclip", "--harness", harness)[0]
        for harness in ("shared", "published")
    }
    for harness, figures in found.items():
        assert figures["title"] == f"sclip, harness {harness}"
        assert 0 < figures["miou"] < evaluated[1]["miou"]
    assert found["shared"]["miou"] != found["published"]["miou"]
    assert found["published"]["settings"]["crop_px"] == 224


@pytest.mark.long
def test_a_grid_is_one_command(evaluate: Evaluate, drawn: list[str], tmp_path: Path) -> None:
    target = tmp_path / "table.md"
    document, printed = evaluate(
        tmp_path / "grid", *drawn, *DEMO, "--limit", "3", "--grid", "table7", "--markdown", str(target)
    )
    titles = [run["title"] for run in document["runs"]]
    single = document["runs"][1]
    assert titles[:2] == ["none", f"best single head ({single['settings']['head']} of 0 to 1)"]
    assert titles[2:] == ["mean over heads", "product over heads"]
    assert len(list((tmp_path / "grid").iterdir())) == 3 + 2, "every head was tried"
    assert len({run["miou"] for run in document["runs"]}) > 1
    assert all(title in printed for title in titles)
    assert target.read_text().count("\n| ") == len(titles) + 1


@pytest.mark.long
def test_calibrated_thresholds_raise_what_they_should_and_annotate_takes_them(
    ray_here: SharedRay, evaluate: Evaluate, drawn: list[str], tmp_path: Path
) -> None:
    settings = tmp_path / "settings.json"
    wrong = ["--score-threshold", "0.05", "--background-threshold", "0.05"]
    runs, printed = evaluate(tmp_path / "calibrated", *drawn, *DEMO, *wrong, "--calibrate", str(settings))
    before, after = (run["miou"] for run in runs["runs"])
    assert settings.exists() == (after > before)
    assert f"{before:.1f} -> {after:.1f}" in printed
    assert after > before, printed
    (tmp_path / "vocab.txt").write_text("\n".join(NAMES))
    images = drawn[drawn.index("--images") + 1]
    flags = ["--vocab", str(tmp_path / "vocab.txt"), "--background", "none", "--settings", str(settings), *DEMO]
    flags += ["--preset", "release"]
    run = ray_here.annotate(images, str(tmp_path / "labels"), *flags, "--limit", "2")
    assert run.returncode == 0, run.stderr
    manifest = json.loads((tmp_path / "labels/manifest.json").read_text())
    thresholds = json.loads(settings.read_text())["classes"]
    assert manifest["settings"]["class_score_thresholds"] == [thresholds[name]["score_threshold"] for name in NAMES]
    figures, printed = evaluate(tmp_path / "all", *drawn, *DEMO, "--settings", str(settings))
    assert figures["images_seen"] == IMAGES // 2
    assert f"the settings file was tuned on {IMAGES // 2} of these images" in printed


@pytest.mark.long
def test_a_fitted_curve_raises_f1_and_annotate_takes_it(
    ray_here: SharedRay, evaluate: Evaluate, drawn: list[str], tmp_path: Path
) -> None:
    wrong, fitted = tmp_path / "wrong.json", tmp_path / "curve.json"
    wrong.write_text(json.dumps({"settings": {"presence_midpoint": 1.7}}))
    flags = [*drawn, *DEMO, "--preset", "open", "--settings", str(wrong), "--calibrate", str(fitted)]
    runs, printed = evaluate(tmp_path / "fitted", *flags)
    before, after = (run["f1"] for run in runs["runs"])
    assert after > before, printed
    assert "calibration error" in printed
    found = json.loads(fitted.read_text())["settings"]
    (tmp_path / "vocab.txt").write_text("\n".join(NAMES))
    images = drawn[drawn.index("--images") + 1]
    flags = ["--vocab", str(tmp_path / "vocab.txt"), "--background", "none", "--settings", str(fitted), *DEMO]
    run = ray_here.annotate(images, str(tmp_path / "labels"), *flags, "--limit", "2")
    assert run.returncode == 0, run.stderr
    settings = json.loads((tmp_path / "labels/manifest.json").read_text())["settings"]
    assert found.items() <= settings.items()


@pytest.mark.long
def test_a_benchmark_in_its_makers_layout(evaluate: Evaluate, tmp_path: Path) -> None:
    drawn = [draw(seed, 96, 128) for seed in range(3)]
    truths = [np.where(each.labels > 0, each.labels.astype(np.int64) - 1, UNLABELLED) for each in drawn]
    truths = [np.where(truth < 19, truth, UNLABELLED) for truth in truths]
    export("cityscapes", tmp_path / "data", [(each.image, truth) for each, truth in zip(drawn, truths, strict=True)])
    flags = ["--dataset", "cityscapes", "--root", str(tmp_path / "data"), *DEMO, "--shorter-side-px", "96"]
    figures, _ = evaluate(tmp_path / "rows", *flags, "--diffusion", "none")
    assert figures["images"] == 3
    assert len(figures["iou"]) == 19
    assert figures["settings"]["attention_threshold"] == 0.35, "as published for the data set"
    counted = sum(int((truth != UNLABELLED).sum()) for truth in truths)
    assert sums(tmp_path / "rows", 19).confusion.sum() == counted
