"""Two runs over the same images: joined by id, classes matched by name, the largest differences first."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.output.rows import open_labels
from demo.world.names import NAMES
from jobs.page.comparison import Areas, choose_images, least_differences, read_areas
from tests.jobs.test_report import HEIGHT, WIDTH, draw, labelled_rows, make_report, page_data, write_images
from tests.support.drawn_labels import row, write_labels

IMAGES = 8
WORDS = ["kite", *reversed(NAMES)]
"""The other run's vocabulary: the same words in another order, and one more."""
CHANGED = 3


def other_row(seed: int, image_id: str, uri: str) -> dict[str, Any]:
    """The labels of a drawn image in the other vocabulary. The top half of image `CHANGED` is a kite."""
    labels = draw(seed, HEIGHT, WIDTH).labels.astype(np.int64)
    numbers = np.array([0, *(WORDS.index(name) + 1 for name in NAMES)])[labels]
    if seed == CHANGED:
        numbers[: HEIGHT // 2] = 1
    scores = np.where(np.isin(np.arange(1, len(WORDS) + 1), numbers), 0.9, 0.1).astype(np.float32)
    return row(seed, numbers, scores, image_id=image_id, uri=uri, shard=image_id)


def write_two_runs(folder: Path) -> tuple[Path, Path]:
    """Two runs that have eight images in common. The other one has two more."""
    images = write_images(folder / "images")
    ids = [f"{seed:03}.jpg" for seed in range(1, 11)]
    uris = [str(images / name) for name in ids]
    rows = labelled_rows(["unused", *ids], ["unused", *uris], ["unused", *ids])[1:]
    others = [other_row(seed, name, uri) for seed, (name, uri) in enumerate(zip(ids, uris, strict=True), start=1)]
    one = write_labels(folder / "one", rows[:5], rows[5:8], class_names=NAMES)
    other = write_labels(folder / "other", others[:0:-2], others[::2], class_names=WORDS)
    return one, other


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_two_runs(tmp_path_factory.mktemp("runs"))


def test_images_are_joined_and_differences_measured_in_classes_of_the_same_name(two_runs: tuple[Path, Path]) -> None:
    one, other = two_runs
    page = make_report(one, "--compare", str(other))
    data = page_data(page)
    assert "<title>Two runs compared: one and other</title>" in page.read_text()
    names = [entry["name"] for entry in data["classes"]]
    assert names == [*NAMES, "kite"]
    assert [names[index] for index in data["runs"][1]["classes"]] == WORDS
    by_id = {image["image_id"]: image for image in data["images"]}
    assert sorted(by_id) == [f"{seed:03}.jpg" for seed in range(1, 9)]
    assert "8 images are in both runs" in page.read_text()
    for image_id, image in by_id.items():
        changed = image_id == f"{CHANGED:03}.jpg"
        assert image["difference"] == pytest.approx(0.5 if changed else 0)
        of_runs = [
            {names[run["classes"][index]] for index, _ in side["found"]}
            for run, side in zip(data["runs"], image["sides"], strict=True)
        ]
        assert ("kite" in of_runs[1]) == changed
        assert changed or of_runs[0] == of_runs[1]


def test_the_images_that_differ_most_are_chosen(two_runs: tuple[Path, Path]) -> None:
    one, other = two_runs
    for seed in "012":
        data = page_data(make_report(one, "--compare", str(other), "--pictures", "1", "--seed", seed))
        assert [image["image_id"] for image in data["images"]] == [f"{CHANGED:03}.jpg"]


def test_counts_of_both_runs_stand_beside_each_other(two_runs: tuple[Path, Path]) -> None:
    one, other = two_runs
    text = make_report(one, "--compare", str(other), "--pictures", "0").read_text()
    [kite] = re.findall(r'<bdi title="kite">.*?</li>', text, re.DOTALL)
    assert re.findall(r'visually-hidden">(\w+): </span>(\d+)', kite) == [("one", "0"), ("other", "1")]


def test_an_image_that_changed_its_size_is_named(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    one, _ = two_runs
    smaller = row(1, np.ones((HEIGHT // 2, WIDTH), np.int64), image_id="001.jpg")
    write_labels(tmp_path / "smaller", [smaller], [])
    page = make_report(one, "--compare", str(tmp_path / "smaller"))
    assert page_data(page)["images"] == []
    assert "<code>001.jpg</code>: the runs saw it in different sizes" in page.read_text()


def test_least_differences_are_those_of_areas() -> None:
    """Half of what the areas of classes and background changed by; a repeated id counts once."""
    one = Areas(
        pa.chunked_array([["a", "b", "c"]]), np.array([0, 0, 1]), np.array([4, 5, 4]), np.array([0.5, 0.25, 0.5])
    )
    other = Areas(
        pa.chunked_array([["b"], ["d", "a"]]), np.array([0, 2, 2]), np.array([5, 4, 5]), np.array([0.5, 0.25, 0.5])
    )
    ids, differences = least_differences(one, other)
    assert ids == ["a", "b"]
    assert differences.tolist() == pytest.approx([0.25, 0.5])
    assert choose_images(one, other, 1, seed=0) == (["b"], 2)
    assert choose_images(one, other, 9, seed=0)[1] == 2


def test_areas_of_a_run_are_shares_of_its_images(two_runs: tuple[Path, Path]) -> None:
    labels = open_labels(str(two_runs[0]), "--labels")
    areas = read_areas(labels, range(len(NAMES)))
    for place, image_id in enumerate(areas.image_ids.to_pylist()):
        truth = draw(int(image_id[:3]), HEIGHT, WIDTH).labels
        own = areas.images == place
        assert areas.shares[own] == pytest.approx([(truth == index + 1).mean() for index in areas.classes[own]])
