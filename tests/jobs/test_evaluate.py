"""Wrong requests for an evaluation: one sentence, exit code 2, and Ray is never started."""

from pathlib import Path

import pytest
from PIL import Image

from jobs.evaluate import main
from tests.support.jobs import refusal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A labelled folder with one image, and files that are wrong."""
    for name in ("images", "masks", "hollow"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    Image.new("L", (8, 8)).save(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").write_text("sky\nsand\n")
    (tmp_path / "twice.txt").write_text("sky\nsky\n")
    (tmp_path / "other.json").write_text('{"classes": {"car": {"score_threshold": 0.5}}}')
    (tmp_path / "wrong.json").write_text('{"settings": {"speed": 1}}')
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--images", "{tmp}/nowhere"], "{tmp}/nowhere"),
        (["--images", "{tmp}/hollow"], "{tmp}/hollow"),
        (["--masks", "{tmp}/hollow"], "{tmp}/hollow"),
        (["--classes", "{tmp}/twice.txt"], "line 2: class 'sky' is already on line 1"),
        (["--dataset", "voc21"], "--root is missing: name the folder of data set voc21"),
        (["--dataset", "voc21", "--root", "{tmp}/hollow"], "--root {tmp}/hollow has no ImageSets/Segmentation/val.txt"),
        (
            ["--method", "sclip", "--grid", "table7"],
            "--grid, --calibrate and --examples are for --method cliper, not sclip",
        ),
        (["--grid", "table7", "--calibrate", "{tmp}/s.json"], "--grid and --calibrate do not go together"),
        (["--grid", "table7", "--diffusion", "none"], "table7 compare compensations: give --diffusion"),
        (
            ["--given-labels", "--calibrate", "{tmp}/s.json", "--calibrate-for", "f1"],
            "--given-labels says what is present",
        ),
        (["--calibrate", "{tmp}/s.json"], "--calibrate needs at least two images"),
        (["--json", "{tmp}/no/such.json"], "{tmp}/no/such.json: the folder does not exist"),
        (["--settings", "{tmp}/other.json"], "has thresholds for classes, and none of them is in the vocabulary"),
        (["--settings", "{tmp}/wrong.json"], "there is no setting 'speed'"),
        (["--split", "train"], "--split is for the benchmarks"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--method", "sclip", "--background-threshold", "2"], "background_threshold must be between 0.0 and 1.0"),
        (["--method", "proxyclip", "--proxy", "no_such_model"], "--proxy: proxy model 'no_such_model'"),
        (["--method", "sclip", "--attention", "identity"], "--attention has no effect with --method sclip"),
        (["--method", "sclip", "--settings", "{tmp}/other.json"], "--settings has no effect with --method sclip"),
        (
            ["--method", "sclip", "--harness", "shared", "--sliding-crop-px", "224"],
            "--sliding-crop-px has no effect with --method sclip, harness shared",
        ),
        (["--clip", "local-dir:{tmp}/hollow"], "has no file open_clip_config.json"),
    ],
)
def test_wrong_requests(changes: list[str], message: str, folder: Path) -> None:
    right = ["--images", "{tmp}/images", "--masks", "{tmp}/masks", "--classes", "{tmp}/classes.txt"]
    flags = ["--dataset", "folder", *right, "--clip", "demo", "--diffusion", "demo", "--output", "{tmp}/out", *changes]
    sentence = refusal(main, *(flag.replace("{tmp}", str(folder)) for flag in flags))
    assert message.replace("{tmp}", str(folder)) in sentence
