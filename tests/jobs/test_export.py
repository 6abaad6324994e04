"""COCO files, read by the tools that use them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow.dataset
import pytest
import supervision
from datasets import load_dataset
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from demo.world.names import NAMES
from jobs.export import main
from tests.support.drawn_labels import HEIGHT, WIDTH, failure, label_map, row, shuffled, write_labels
from tests.support.jobs import refusal

IMAGES = 12


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """True labels, and one failure."""
    rows = [row(seed, label_map(seed)) for seed in range(IMAGES)]
    return write_labels(tmp_path_factory.mktemp("export") / "labels", *shuffled([*rows, failure("gone.jpg")]))


def export(labels: Path, target: Path, *flags: str) -> Any:
    assert main(["--labels", str(labels), "--output", str(target), *flags]) == 0
    return json.loads(target.read_text()) if target.exists() else None


def masks(coco: COCO, image: dict[str, Any]) -> np.ndarray:
    found = np.zeros((image["height"], image["width"]), np.int64)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
        found[coco.annToMask(annotation) == 1] = annotation["category_id"]
    return found


@pytest.mark.parametrize(
    "flags", [[], ["--uncompressed"], ["--split-components"], ["--polygons", "--split-components"], ["--polygons"]]
)
def test_pycocotools_reads_the_masks_that_were_written(flags: list[str], labels: Path, tmp_path: Path) -> None:
    document = export(labels, tmp_path / "coco.json", *flags)
    coco = COCO(str(tmp_path / "coco.json"))
    assert [image["file_name"] for image in document["images"]] == [f"a.tar/{seed:03}.jpg" for seed in range(IMAGES)]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(NAMES)
    assert len({annotation["id"] for annotation in document["annotations"]}) == len(document["annotations"])
    for seed, image in enumerate(coco.loadImgs(coco.getImgIds())):
        agreement = (masks(coco, image) == label_map(seed)).mean()
        assert agreement == 1 if "--polygons" not in flags else agreement > 0.97
    if flags:
        return
    for annotation in document["annotations"]:
        assert annotation.keys() >= {"area", "bbox", "iscrowd", "score"}
        assert isinstance(annotation["segmentation"]["counts"], str)


def test_results_have_the_same_ids_and_cocoeval_scores_them_as_expected(labels: Path, tmp_path: Path) -> None:
    """Images with an even number have all classes, the others none. The recall of each class is therefore known."""
    rows = [row(seed, label_map(seed) if seed % 2 == 0 else np.zeros((HEIGHT, WIDTH), int)) for seed in range(IMAGES)]
    half = write_labels(tmp_path / "half", *shuffled(rows))
    export(labels, tmp_path / "truth.json")
    results = export(half, tmp_path / "results.json", "--results")
    assert {frozenset(result) for result in results} == {
        frozenset(("image_id", "category_id", "segmentation", "score"))
    }
    truth = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"][0, :, 0, -1]  # IoU 0.5, every class, all areas, most detections
    for index, category in enumerate(evaluation.params.catIds):
        shown = [seed for seed in range(IMAGES) if (label_map(seed) == category).any()]
        if shown:
            assert recall[index] == pytest.approx(sum(seed % 2 == 0 for seed in shown) / len(shown))


def test_each_of_several_files_is_complete(labels: Path, tmp_path: Path) -> None:
    export(labels, tmp_path / "coco.json", "--images-per-file", "5")
    whole = export(labels, tmp_path / "whole.json")
    parts = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("coco-*.json"))]
    assert [len(part["images"]) for part in parts] == [5, 5, 2]
    assert [image for part in parts for image in part["images"]] == whole["images"]
    assert [entry for part in parts for entry in part["annotations"]] == whole["annotations"]
    assert all(part["categories"] == whole["categories"] for part in parts)
    again = ["--labels", str(labels), "--output", str(tmp_path / "coco.json"), "--images-per-file", "9"]
    assert f"--output {tmp_path / 'coco-00000.json'} exists already" in refusal(main, *again)


def test_label_maps_are_read_as_they_were_and_named_like_the_images(labels: Path, tmp_path: Path) -> None:
    document = export(labels, tmp_path / "coco.json", "--png", str(tmp_path / "maps"))
    names = json.loads((tmp_path / "maps/id2label.json").read_text())
    assert names["1"] == NAMES[0]
    for seed, image in enumerate(document["images"]):
        with Image.open(tmp_path / "maps" / image["label_file"]) as file:
            assert file.mode == "P"
            assert np.array_equal(np.asarray(file), label_map(seed))


def test_supervision_imports_the_file(labels: Path, tmp_path: Path) -> None:
    export(labels, tmp_path / "coco.json")
    for seed in range(IMAGES):
        path = tmp_path / f"images/a.tar/{seed:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    dataset = supervision.DetectionDataset.from_coco(
        str(tmp_path / "images"), str(tmp_path / "coco.json"), force_masks=True
    )
    assert len(dataset) == IMAGES
    assert dataset.classes == list(NAMES)
    present = sum(len(np.unique(label_map(seed)[label_map(seed) > 0])) for seed in range(IMAGES))
    assert sum(len(detections) for _, _, detections in dataset) == present


@pytest.mark.parametrize("reader", ["pyarrow", "polars", "duckdb", "datasets"])
def test_other_programs_read_the_folder_of_rows(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = str(labels / "rows")
    readers: dict[str, Callable[[], list[str]]] = {
        "pyarrow": lambda: pyarrow.dataset.dataset(folder).to_table()["image_id"].to_pylist(),
        "polars": lambda: polars.read_parquet(folder)["image_id"].to_list(),
        "duckdb": lambda: [name for (name,) in duckdb.sql(f"SELECT image_id FROM '{folder}/*.parquet'").fetchall()],
        "datasets": lambda: load_dataset(folder, cache_dir=str(tmp_path))["train"]["image_id"],
    }
    image_ids = [*(f"a.tar/{seed:03}.jpg" for seed in range(IMAGES)), "a.tar/gone.jpg"]
    assert sorted(readers[reader]()) == sorted(image_ids)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--results", "--polygons"], "choose one of --results, --polygons and --uncompressed"),
        (["--images-per-file", "0"], "--images-per-file must be at least 1"),
        (["--labels", "{tmp}"], "has no manifest.json"),
        (["--output", "{labels}/coco.json"], "choose a place outside the labels"),
        (["--png", "{labels}/maps"], "choose a place outside the labels"),
    ],
)
def test_wrong_requests_are_one_sentence(flags: list[str], message: str, labels: Path, tmp_path: Path) -> None:
    right = ["--labels", str(labels), "--output", str(tmp_path / "coco.json")]
    assert message in refusal(
        main, *right, *(flag.replace("{tmp}", str(tmp_path)).replace("{labels}", str(labels)) for flag in flags)
    )


def test_masks_of_another_size_are_not_decoded(tmp_path: Path) -> None:
    """They could be of any size."""
    damaged = row(1, label_map(1))
    for annotation in damaged["annotations"]:
        annotation["segmentation"]["size"] = [2**15, 2**15]
    labels = write_labels(tmp_path / "labels", [damaged])
    request = ["--labels", str(labels), "--output", str(tmp_path / "coco.json"), "--png", str(tmp_path / "maps")]
    assert "the labels are damaged: an image of " in refusal(main, *request)


def test_an_unfinished_output_is_exported_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labels(tmp_path / "labels", [row(1, label_map(1))], [row(0, label_map(0))], finished=False)
    document = export(labels, tmp_path / "coco.json")
    assert [image["file_name"] for image in document["images"]] == ["a.tar/001.jpg"], "the other file does not count"
    assert "is not finished: 1 rows so far" in capsys.readouterr().out
