"""Preset open as a user meets it: words left out, probabilities, a trial with its page."""

import json
from pathlib import Path

import pytest

import jobs.annotate
import jobs.filter
from tests.end_to_end.conftest import FinishedRun
from tests.support.jobs import OutputReader, refusal

LINES = "Meadow\nsky: sky; clouds\nriver\n"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text(LINES)
    (folder / "more.txt").write_text("meadow\nsomething of my own\n")
    words = ["--vocab", str(folder / "vocab.txt"), "--background", f"+{folder / 'more.txt'}"]
    return [*words, "--clip", f"local-dir:{tiny_clip}", "--diffusion", "none", "--shorter-side-px", "112"]


def test_a_trial_labels_a_few_images_of_every_shard_and_writes_a_page(
    finished_run: FinishedRun, flags: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    ended = finished_run.ray.annotate(finished_run.corpus, str(output), *flags, "--try", "5")
    assert ended.returncode == 0, ended.stderr
    assert not output.exists()
    folder = Path(f"{output}-try")
    assert "<html" in (folder / "report.html").read_text()

    rows = OutputReader(str(folder), {}).rows()
    assert len(rows) == 5
    assert len({row["shard"] for row in rows.values()}) > 1
    settings = json.loads((folder / "manifest.json").read_text())["settings"]
    for row in rows.values():
        probabilities = row["class_probabilities"]
        assert len(probabilities) == 3
        present = {annotation["category_id"] - 1 for annotation in row["annotations"]}
        for index, (score, probability) in enumerate(zip(row["class_scores"], probabilities, strict=True)):
            odds = (score / settings["presence_midpoint"]) ** settings["presence_slope"]
            assert probability == pytest.approx(odds / (1 + odds), abs=1e-4)
            assert index not in present or probability >= settings["presence_threshold"]
        lost = {entry["category_id"] - 1 for entry in row["lost_to"]}
        assert not lost & present


def test_background_words_that_are_classes_are_left_out_and_named(
    finished_run: FinishedRun, flags: list[str], tmp_path: Path
) -> None:
    output = str(tmp_path / "labels")
    ended = finished_run.ray.annotate(finished_run.corpus, output, *flags, "--limit", "3")
    assert ended.returncode == 0, ended.stderr
    manifest = json.loads((tmp_path / "labels/manifest.json").read_text())
    left_out = manifest["background_left_out"]
    assert {"meadow", "sky", "river"} <= set(left_out) < set(manifest["vocabulary"]["background"])
    assert f"Left out of the background, because a class means the same: {left_out[0]}" in ended.stdout
    assert "not measured" in ended.stdout
    assert manifest["probabilities_measured"] == "not measured"

    kept = tmp_path / "kept.parquet"
    for condition in ("sky", "probability('sky') >= 0.5"):
        flag = "--where" if "(" in condition else "--require"
        ended = finished_run.ray.run(
            jobs.filter.main, "--labels", output, flag, condition, "--output", str(kept), "--overwrite"
        )
        assert ended.returncode == 0, ended.stderr
    again = finished_run.ray.annotate(finished_run.corpus, output, *flags, "--limit", "3")
    assert "Already finished" in again.stdout


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--score-threshold", "0.5"], "--score-threshold has no effect with --preset open: use --presence-threshold"),
        (["--preset", "release", "--outline-threshold", "0.5"], "use --background-threshold"),
        (["--profile", "street"], "--profile is for --preset release"),
        (["--presence-threshold", "1.5"], "presence_threshold must be between 0.0 and 1.0"),
        (["--try", "0"], "--try must be between 1 and"),
        (["--try", "3", "--limit", "3"], "--try and --limit do not go together"),
        (["--background", "+/nowhere"], "--background /nowhere"),
        (["--text-embeddings", "words.safetensors"], "--background has no effect with --text-embeddings"),
    ],
)
def test_wrong_requests(changes: list[str], sentence: str, flags: list[str], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"image")
    assert sentence in refusal(
        jobs.annotate.main, "--input", str(images), "--output", str(tmp_path / "out"), *flags, *changes
    )
