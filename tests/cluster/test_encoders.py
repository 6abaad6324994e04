"""Counts per image: what is compared, what is left out, and what every reader makes of the same ground truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cliper.ground_truth import IGNORED, pack_truth, unpack_truth
from cliper.preprocess import InputSpec
from cluster.corpus.labelled import LabelledCorpus, list_index_masks, list_labelled
from cluster.corpus.prepare import Preparer
from cluster.datasource import read_blocks
from cluster.encoders import confusion, threshold_histogram, truth_of
from cluster.storage import open_location
from demo.world.names import CATEGORY
from demo.world.scene import draw
from jobs.common.statistics import segmentation_figures
from schemas.rows import Status
from tests.support.labelled_world import MAKERS, UNLABELLED, export

CLASSES = 19
"""As many as the smallest benchmark has."""


def drawn_images(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Drawn images and class indices; names beyond the first 19 are unlabelled."""
    assert min(CATEGORY.values()) == 1
    images = [draw(seed, 48, 64) for seed in range(count)]
    classes = [image.labels.astype(np.int64) - 1 for image in images]
    return [
        (image.image, np.where((index >= 0) & (index < CLASSES), index, UNLABELLED))
        for image, index in zip(images, classes, strict=True)
    ]


def prepare_all(labelled: LabelledCorpus) -> list[dict[str, Any]]:
    """Every image's row as it leaves the read tasks."""
    prepare = Preparer(InputSpec(16, 16), labelled.corpus.limits, labelled)
    table = pa.concat_tables(read_blocks(labelled.corpus, prepare, report=lambda **_: None))
    return table.to_pylist()


def truths_of(labelled: LabelledCorpus) -> list[np.ndarray]:
    """Labels as an evaluating actor gets them."""
    rows = prepare_all(labelled)
    assert {row["status"] for row in rows} == {"ok"}
    return [truth_of(row) for row in rows]


@pytest.mark.parametrize("name", MAKERS)
def test_every_reader_gives_the_same_mean_iou(name: str, tmp_path: Path) -> None:
    """The same truth in every maker's layout, and the same predictions: the truth, moved by five pixels."""
    images = drawn_images(4)
    export(name, tmp_path, images)
    benchmark = name.removesuffix("_train_ids")
    truths = truths_of(list_labelled(benchmark, open_location(str(tmp_path), "--root")))
    counts = np.zeros((CLASSES + 1, CLASSES + 1), np.int64)
    for truth, (_, drawn) in zip(truths, images, strict=True):
        predicted = np.roll(np.where(drawn == UNLABELLED, 0, drawn + 1), 5, axis=1)
        for pair in confusion(truth, predicted, CLASSES + 1):
            counts[pair["truth"], pair["predicted"]] += pair["pixels"]
    if benchmark == "coco_object":  # by its protocol unlabelled pixels are background, and count as such
        counts[0] = 0
    expected = np.zeros_like(counts)
    for _, drawn in images:
        labelled = drawn != UNLABELLED
        predicted = np.roll(np.where(drawn == UNLABELLED, 0, drawn + 1), 5, axis=1)
        np.add.at(expected, (drawn[labelled] + 1, predicted[labelled]), 1)
    assert np.array_equal(counts, expected)
    names = [str(number) for number in range(CLASSES)]
    figures = segmentation_figures(counts, names)
    assert figures == segmentation_figures(expected, names)
    assert 0.5 < figures["miou"] < 0.95


def test_a_image_whose_mask_does_not_fit_is_a_failure_that_names_both(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, size in (("good", (8, 6)), ("small", (4, 3))):
        Image.new("RGB", (8, 6)).save(tmp_path / f"images/{name}.png")
        Image.new("L", size).save(tmp_path / f"masks/{name}.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "images/none.png")
    Image.new("L", (8, 6)).save(tmp_path / "masks/broken.png")
    (tmp_path / "images/broken.png").write_bytes(b"rubbish")
    folders = [open_location(str(tmp_path / name), "") for name in ("images", "masks")]
    labelled = list_index_masks(folders[0], folders[1], classes=2, background=True)
    rows = {row["image_id"]: row for row in prepare_all(labelled)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good.png": Status.OK,
        "small.png": Status.NO_TRUTH,
        "none.png": Status.NO_TRUTH,
        "broken.png": Status.NOT_AN_IMAGE,
    }
    assert f"mask {tmp_path}/masks/small.png: it has 4 x 3 pixels, the image 8 x 6" in rows["small.png"]["error"]
    assert str(tmp_path / "masks/none.png") in rows["none.png"]["error"]
    assert all(row["clip"] is row["ground_truth"] is None for row in rows.values() if row["status"] != Status.OK)


@pytest.mark.parametrize(("background", "expected"), [(True, [[0, 1, 2]]), (False, [[1, 2, IGNORED]])])
def test_labels_leave_room_for_no_class(background: bool, expected: list[list[int]], tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    values = [[0, 1, 2]] if background else [[0, 1, 255]]
    Image.new("RGB", (3, 1)).save(tmp_path / "images/a.png")
    Image.fromarray(np.array(values, np.uint8)).save(tmp_path / "masks/a.png")
    folders = [open_location(str(tmp_path / name), "") for name in ("images", "masks")]
    (truth,) = truths_of(list_index_masks(folders[0], folders[1], 2, background))
    assert truth.tolist() == expected


def test_confusion_counts_what_occurs_and_leaves_out_ignored_pixels() -> None:
    truth = np.array([[0, 1, IGNORED], [1, 1, 2]], np.uint16)
    predicted = np.array([[0, 2, 1], [1, 1, 0]], np.int32)
    assert confusion(truth, predicted, 3) == [
        {"truth": 0, "predicted": 0, "pixels": 1},
        {"truth": 1, "predicted": 1, "pixels": 2},
        {"truth": 1, "predicted": 2, "pixels": 1},
        {"truth": 2, "predicted": 0, "pixels": 1},
    ]


def test_winning_classes_count_pixels_and_hits_by_step() -> None:
    truth = np.array([[1, 1, 2, IGNORED, 0]], np.uint16)
    value = np.array([[0.505, 0.509, 1.7, 0.5, 0.2]])
    labels = np.array([[1, 2, 2, 1, 0]])
    assert threshold_histogram(truth, value, labels) == [
        {"class": 0, "step": 50, "pixels": 1, "hits": 1},
        {"class": 1, "step": 50, "pixels": 1, "hits": 0},
        {"class": 1, "step": 99, "pixels": 1, "hits": 1},
    ]


@pytest.mark.parametrize(("largest", "bytes_a_pixel"), [(254, 1), (255, 2), (65000, 2)])
def test_a_ground_truth_survives_packing(largest: int, bytes_a_pixel: int) -> None:
    truth = np.array([[0, 1, IGNORED], [largest, 7, 0]], np.uint16)
    packed = pack_truth(truth)
    assert len(packed) == truth.size * bytes_a_pixel
    assert np.array_equal(unpack_truth(packed, (2, 3)), truth)
