"""The shipped models label as well as recorded, and the demo runs from drawing to page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cliper.models import DEMO_MODEL, find_clip
from cluster.corpus.limits import DEFAULT_LIMITS
from demo.__main__ import main
from demo.world.__main__ import main as draw_world
from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.evaluation.datasets import find_folder
from jobs.export import main as export
from schemas.runs import annotations_from_labels
from tests.support.jobs import SharedRay
from tests.support.labelled_world import read_mask

RECORDED_MIOU = 71.1
"""Mean IoU of the shipped models on the first 40 images, in percent, as measured when they were committed."""
IMAGES = 40


def test_the_shipped_models_are_small_and_not_pickled() -> None:
    files = [path for path in DEMO_MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".svg"}
    assert find_clip("demo").revision.startswith("sha256:")


def test_an_evaluation_reads_the_drawn_world(tmp_path: Path) -> None:
    draw_world(tmp_path, seed=5, images=3, height_px=48, width_px=64)
    folders = [str(tmp_path / name) for name in ("images", "masks", "classes.txt")]
    dataset = find_folder(*folders, background=True, ignore=(255,), limit=None, limits=DEFAULT_LIMITS)
    assert tuple(dataset.class_names) == NAMES
    names = [shard.name for shard in dataset.labelled.corpus.shards]
    assert names == ["000005.jpg", "000006.jpg", "000007.jpg"]
    for seed, name in enumerate(names, start=5):
        scene = draw(seed, 48, 64)
        assert np.array_equal(read_mask(dataset.labelled, name), scene.labels)
        with Image.open(tmp_path / "images" / name) as image:
            assert np.abs(np.asarray(image).astype(float) - scene.image).mean() < 8, "a JPEG file of the same scene"


@pytest.fixture(scope="module")
def demo_folder(ray_here: SharedRay, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a demo."""
    folder = tmp_path_factory.mktemp("demo")
    demo = ray_here.run(lambda _: main(folder, IMAGES))
    assert demo.returncode == 0, demo.stderr
    return folder


@pytest.mark.slow
@pytest.mark.end_to_end
class TestDemo:
    """The whole demo, its figures and its page."""

    def test_labels_are_as_accurate_as_recorded(self, demo_folder: Path) -> None:
        figures = json.loads((demo_folder / "metrics.json").read_text())
        assert figures["images"] == IMAGES
        assert figures["miou"] == pytest.approx(RECORDED_MIOU, abs=2)
        assert figures["map"] > 85

    def test_every_image_has_a_row_and_a_place_on_the_page(self, demo_folder: Path) -> None:
        rows = [
            row for path in (demo_folder / "labels").glob("rows/*.parquet") for row in pq.read_table(path).to_pylist()
        ]
        image_ids = [f"{seed:06}.jpg" for seed in range(IMAGES)]
        assert sorted(row["image_id"] for row in rows) == image_ids
        page = (demo_folder / "report.html").read_text()
        assert all(image_id in page for image_id in image_ids)

    def test_cocoeval_agrees_on_every_overlap(self, demo_folder: Path, tmp_path: Path) -> None:
        """Every class of every image: pycocotools compares masks, the figures count pixels."""
        labels = ["--labels", str(demo_folder / "labels")]
        assert export([*labels, "--output", str(tmp_path / "labels.json")]) == 0
        assert export([*labels, "--output", str(tmp_path / "results.json"), "--results"]) == 0
        document = json.loads((tmp_path / "labels.json").read_text())
        truths = {image["id"]: true_labels(demo_folder, image["image_id"]) for image in document["images"]}
        document["annotations"] = annotations_of(truths)
        (tmp_path / "truth.json").write_text(json.dumps(document))
        truth = COCO(str(tmp_path / "truth.json"))
        found = truth.loadRes(str(tmp_path / "results.json"))
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        pixels = np.zeros((3, len(NAMES)))  # intersection, union and truth of every class, over all images
        overlaps: dict[int, list[float]] = {category: [] for category in truth.getCatIds()}
        for image, true in truths.items():
            predicted = np.zeros_like(true)
            for annotation in found.loadAnns(found.getAnnIds(imgIds=image)):
                predicted[found.annToMask(annotation) == 1] = annotation["category_id"]
            for category in truth.getCatIds():
                ours, theirs = predicted == category, true == category
                counts = (ours & theirs).sum(), (ours | theirs).sum(), theirs.sum()
                pixels[:, category - 1] += counts
                if theirs.any():
                    iou = float(counts[0] / counts[1])
                    overlaps[category].append(iou)
                    reported = np.asarray(evaluation.ious[image, category]).ravel()
                    assert reported.tolist() == pytest.approx([iou] if iou else [0.0] * len(reported))
        for index, category in enumerate(truth.getCatIds()):
            if overlaps[category]:
                recalls = [np.mean(np.array(overlaps[category]) >= iou) for iou in evaluation.params.iouThrs]
                assert evaluation.eval["recall"][:, index, 0, -1].tolist() == pytest.approx(recalls)
        figures = json.loads((demo_folder / "metrics.json").read_text())
        drawn = pixels[2] > 0
        ious = 100 * pixels[0, drawn] / pixels[1, drawn]
        assert [iou for iou in figures["iou"].values() if iou is not None] == pytest.approx(ious.tolist())
        assert figures["miou"] == pytest.approx(ious.mean())


def true_labels(folder: Path, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "masks" / Path(image_id).with_suffix(".png")))


def annotations_of(truths: dict[int, np.ndarray]) -> list[dict[str, Any]]:
    """Label maps by image id as COCO annotations."""
    found = [
        annotation | {"image_id": image}
        for image, labels in truths.items()
        for annotation in annotations_from_labels(labels.astype(np.int64), np.ones(len(NAMES)))
    ]
    return [annotation | {"id": number} for number, annotation in enumerate(found, start=1)]
