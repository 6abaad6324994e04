"""The shipped models are as good as recorded, and the demo runs from the drawing to the page."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cliper.models import DEMO_MODEL, find_clip
from demo.corpus import HEIGHT_PX, WIDTH_PX, seed_of, write_corpus
from demo.evaluate import EvaluateOptions, evaluate
from demo.metrics import Scoreboard
from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.common.request import find_models
from jobs.export import main as export
from schemas.runs import annotations_from_labels
from schemas.vocabulary import parse_vocabulary

ROOT = Path(__file__).parents[2]
RECORDED_MIOU = 0.711
"""Mean IoU of the shipped models on the first 40 pictures, as measured when they were committed."""


def test_the_vocabulary_holds_every_name() -> None:
    classes = parse_vocabulary((ROOT / "demo/vocab.txt").read_text())
    assert tuple(entry.name for entry in classes) == NAMES


def test_the_shipped_models_are_small_and_not_pickled() -> None:
    files = [path for path in DEMO_MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".svg"}
    assert find_clip("demo").revision.startswith("sha256:")


def test_shards_hold_the_drawn_pictures(tmp_path: Path) -> None:
    write_corpus(tmp_path, range(5, 12), pictures_per_shard=3)
    members = []
    for path in sorted(tmp_path.iterdir()):
        with tarfile.open(path) as shard:
            for member in shard:
                members.append(seed_of(f"{path.name}/{member.name}"))
                with Image.open(shard.extractfile(member)) as image:
                    assert image.size == (WIDTH_PX, HEIGHT_PX)
    assert members == list(range(5, 12))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_labels_stay_as_right_as_recorded() -> None:
    options = EvaluateOptions(pictures=40)
    figures = evaluate(options, find_models(options.method))[0].figures(0.0)
    assert figures.miou == pytest.approx(RECORDED_MIOU, abs=0.02)
    assert figures.map > 0.85


RAY = [pytest.mark.slow, pytest.mark.end_to_end, pytest.mark.xdist_group("demo")]
PICTURES = 10


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo leaves behind, from ten pictures."""
    folder = tmp_path_factory.mktemp("demo")
    flags = ["--folder", str(folder), "--pictures", str(PICTURES), "--pictures-per-shard", "4"]
    demo = subprocess.run([sys.executable, "-m", "demo", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert demo.returncode == 0, demo.stderr
    return folder


class TestDemo:
    """From the drawing to the page, and to other tools."""

    pytestmark = RAY

    def test_it_leaves_rows_figures_and_a_page(self, demo_folder: Path) -> None:
        figures = json.loads((demo_folder / "metrics.json").read_text())
        assert figures.keys() >= {"miou", "map", "pictures", "seconds"}
        assert figures["pictures"] == PICTURES
        assert figures["miou"] > 0.3
        rows = [row for path in (demo_folder / "labels").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        assert sorted(seed_of(row["image_id"]) for row in rows) == list(range(PICTURES))
        page = (demo_folder / "report.html").read_text()
        assert page.count("<figure>") == PICTURES
        assert f"{100 * figures['miou']:.1f} %" in page

    def test_cocoeval_finds_the_same_overlaps_as_our_figures(self, demo_folder: Path, tmp_path: Path) -> None:
        """Every class of every picture: pycocotools compares masks, our figures count pixels."""
        labels = ["--labels", str(demo_folder / "labels")]
        assert export([*labels, "--output", str(tmp_path / "labels.json")]) == 0
        assert export([*labels, "--output", str(tmp_path / "results.json"), "--results"]) == 0
        document = json.loads((tmp_path / "labels.json").read_text())
        truths = {image["id"]: true_labels(image["image_id"]) for image in document["images"]}
        document["annotations"] = annotations_of(truths)
        (tmp_path / "truth.json").write_text(json.dumps(document))
        truth = COCO(str(tmp_path / "truth.json"))
        found = truth.loadRes(str(tmp_path / "results.json"))
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        everything = Scoreboard(len(NAMES), 0.5)
        overlaps: dict[int, list[float]] = {category: [] for category in truth.getCatIds()}
        for image, true in truths.items():
            alone = Scoreboard(len(NAMES), 0.5)
            predicted = np.zeros_like(true)
            for annotation in found.loadAnns(found.getAnnIds(imgIds=image)):
                predicted[found.annToMask(annotation) == 1] = annotation["category_id"]
            for board in (alone, everything):
                board.add(predicted, np.zeros(len(NAMES)), true)
            for category, iou in enumerate(alone.iou(), start=1):
                theirs = np.asarray(evaluation.ious[image, category]).ravel()
                if (true == category).any():
                    overlaps[category].append(iou or 0.0)
                    assert theirs.tolist() == pytest.approx([iou] if iou else [0.0] * len(theirs))
        for index, category in enumerate(truth.getCatIds()):
            if overlaps[category]:
                recalls = [np.mean(np.array(overlaps[category]) >= iou) for iou in evaluation.params.iouThrs]
                assert evaluation.eval["recall"][:, index, 0, -1].tolist() == pytest.approx(recalls)
        figures = json.loads((demo_folder / "metrics.json").read_text())
        assert everything.figures(0.0).miou == pytest.approx(figures["miou"], abs=1e-4)


def true_labels(image_id: str) -> np.ndarray:
    return draw(seed_of(image_id), HEIGHT_PX, WIDTH_PX).labels


def annotations_of(truths: dict[int, np.ndarray]) -> list[dict[str, Any]]:
    """Label maps by image id as COCO annotations."""
    found = [
        annotation | {"image_id": image}
        for image, labels in truths.items()
        for annotation in annotations_from_labels(labels.astype(np.int64), np.ones(len(NAMES)))
    ]
    return [annotation | {"id": number} for number, annotation in enumerate(found, start=1)]
