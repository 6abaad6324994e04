"""Every format, decoded here from its published description and compared with the truth."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from scipy import ndimage

from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.export import main
from tests.support.drawn_labels import failure, row, shuffled, write_labels
from tests.support.jobs import refusal

HEIGHT, WIDTH = 120, 160
IDS = ("a.tar/1.jpg", "a.tar/1.png", "b/1.jpg", "b/ü & <x>.jpg", "table.parquet/7", "a.tar/1.jpg#2")
NAMED = ("a.tar/1", "a.tar/1.png", "b/1", "b/ü & %3Cx%3E", "table.parquet/7", "a.tar/1#2")
"""Their names in the exports."""
LEAST_AGREEMENT = 0.97
"""Share of pixels that polygons leave as they were: Pillow fills the border's pixels as well."""
FLAGS = {
    "yolo": "yolo", "voc": "voc", "labelme": "labelme", "png": "png",
    "label-studio": "tasks.json", "cvat": "cvat.xml", "output": "coco.json",
}  # fmt: skip


def label_map(seed: int) -> np.ndarray:
    """A drawn label map; the first has a ring, a hole with an island and two more components of the ring's class."""
    labels = draw(seed, HEIGHT, WIDTH).labels.astype(np.int64)
    if seed == 0:
        labels[20:100, 20:100] = 3
        labels[35:85, 35:85] = 0
        labels[50:70, 50:70] = 3
        labels[10:30, 130:150] = 3
    return labels


TRUTH = dict(zip(NAMED, map(label_map, range(len(IDS))), strict=True))


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """True labels, and one failure."""
    rows = [row(seed, label_map(seed), image_id=image_id) for seed, image_id in enumerate(IDS)]
    return write_labels(tmp_path_factory.mktemp("export") / "labels", *shuffled([*rows, failure("gone.jpg")]))


def export(labels: Path, folder: Path, *flags: str) -> Path:
    targets = [part for name, target in FLAGS.items() for part in (f"--{name}", str(folder / target))]
    assert main(["--labels", str(labels), *targets, *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(labels, tmp_path_factory.mktemp("exported"), "--val-fraction", "0.5")


def paint(shapes: list[tuple[int, list[tuple[float, float]]]]) -> np.ndarray:
    """Polygons of classes, filled by Pillow."""
    image = Image.new("I", (WIDTH, HEIGHT))
    for category, points in shapes:
        ImageDraw.Draw(image).polygon([(x - 0.5, y - 0.5) for x, y in points], fill=category)
    return np.asarray(image)


def pairs(numbers: list[float]) -> list[tuple[float, float]]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def yolo(root: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in (root / "yolo/labels").rglob("*.txt"):
        shapes = []
        for line in file.read_text().splitlines():
            category, *shares = line.split()
            points = [(x * WIDTH, y * HEIGHT) for x, y in pairs([float(share) for share in shares])]
            assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
            shapes.append((int(category) + 1, points))
        found[str(file.relative_to(root / "yolo/labels"))[: -len(".txt")]] = paint(shapes)
    return found


def labelme(root: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in (root / "labelme").rglob("*.json"):
        document = json.loads(file.read_text())
        assert (document["imageHeight"], document["imageWidth"]) == (HEIGHT, WIDTH)
        assert document["imagePath"].startswith(file.stem.split("#")[0].split(".")[0])
        shapes = [(NAMES.index(shape["label"]) + 1, shape["points"]) for shape in document["shapes"]]
        found[str(file.relative_to(root / "labelme"))[: -len(".json")]] = paint(shapes)
    return found


def cvat(root: Path) -> dict[str, np.ndarray]:
    found = []
    document = ET.parse(root / "cvat.xml").getroot()
    assert document.findtext("version") == "1.1"
    assert [name.text for name in document.findall("meta/task/labels/label/name")] == list(NAMES)
    for image in document.iter("image"):
        shapes = []
        for polygon in image.iter("polygon"):
            points = [tuple(map(float, pair.split(","))) for pair in polygon.attrib["points"].split(";")]
            shapes.append((NAMES.index(polygon.attrib["label"]) + 1, points))
        found.append((image.attrib["name"], paint(shapes)))  # type: ignore[arg-type]
    assert len({name for name, _ in found}) == len(IDS)
    by_id = dict(zip(sorted(IDS), [pixels for _, pixels in found], strict=True))
    return {name: by_id[image_id] for name, image_id in zip(NAMED, IDS, strict=True)}


def brush(numbers: list[int]) -> np.ndarray:
    """Values in Label Studio's encoding (thi.ng's rle-pack), by its description."""
    stream, at = "".join(f"{number:08b}" for number in numbers), 0

    def read(bits: int) -> int:
        nonlocal at
        at += bits
        return int(stream[at - bits : at], 2)

    total, word, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    return np.array(values, np.uint8)


def label_studio(root: Path) -> dict[str, np.ndarray]:
    found = {}
    config = ET.parse(root / "tasks.label_config.xml").getroot()
    assert [label.attrib["value"] for label in config.iter("Label")] == list(NAMES)
    for task in json.loads((root / "tasks.json").read_text()):
        pixels = np.zeros((HEIGHT, WIDTH), np.int64)
        for region in task["predictions"][0]["result"]:
            rgba = brush(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)
            pixels[rgba[:, :, 3] > 0] = NAMES.index(region["value"]["brushlabels"][0]) + 1
        found[NAMED[IDS.index(task["data"]["image_id"])]] = pixels
    return found


def voc(root: Path) -> dict[str, np.ndarray]:
    found = {}
    for name in (root / "voc/ImageSets/Segmentation/trainval.txt").read_text().splitlines():
        classes, objects = (
            np.asarray(Image.open(root / f"voc/{kind}/{name}.png"))
            for kind in ("SegmentationClass", "SegmentationObject")
        )
        listed = ET.parse(root / f"voc/Annotations/{name}.xml").findall("object")
        assert set(np.unique(objects)) - {0} == set(range(1, len(listed) + 1))
        for number, entry in enumerate(listed, start=1):
            y, x = np.nonzero(objects == number)
            assert set(classes[y, x]) == {NAMES.index(entry.findtext("name") or "") + 1}
            box = [int(entry.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax")]
            assert box == [x.min() + 1, y.min() + 1, x.max() + 1, y.max() + 1]
        found[name] = classes
    return found


def label_maps(root: Path) -> dict[str, np.ndarray]:
    files = (root / "png").rglob("*.png")
    return {str(file.relative_to(root / "png"))[: -len(".png")]: np.asarray(Image.open(file)) for file in files}


@pytest.mark.parametrize("read", [yolo, labelme, cvat, label_studio, voc, label_maps])
def test_what_is_read_is_what_was_labelled(read: Callable[[Path], dict[str, np.ndarray]], exported: Path) -> None:
    found = read(exported)
    assert found.keys() == TRUTH.keys()
    for name, labels in TRUTH.items():
        agreement = (found[name] == labels).mean()
        assert agreement >= (LEAST_AGREEMENT if read in (yolo, labelme, cvat) else 1), name


def test_yolo_splits_by_the_image_and_names_its_place(exported: Path, labels: Path, tmp_path: Path) -> None:
    data = yaml.safe_load((exported / "yolo/data.yaml").read_text())
    assert data["names"] == dict(enumerate(NAMES))
    lists = {part: (exported / "yolo" / data[part]).read_text().splitlines() for part in ("train", "val")}
    assert lists["train"]
    assert lists["val"]
    endings = {"a.tar/1.png": ".png"}
    assert sorted(lists["train"] + lists["val"]) == sorted(
        f"./images/{name}{endings.get(name, '.jpg')}" for name in NAMED
    )
    fewer = write_labels(tmp_path / "fewer", [row(0, label_map(0), image_id=IDS[0])])
    assert main(["--labels", str(fewer), "--yolo", str(tmp_path / "yolo"), "--val-fraction", "0.5"]) == 0
    for part, images in lists.items():
        alone = (tmp_path / "yolo" / f"{part}.txt").read_text().splitlines()
        assert alone == [image for image in images if image == "./images/a.tar/1.jpg"]


def test_polygons_of_an_object_are_a_group_until_components_are_split(
    labels: Path, exported: Path, tmp_path: Path
) -> None:
    apart = export(labels, tmp_path, "--split-components")
    expected = sum(
        ndimage.label(TRUTH["a.tar/1"] == category, np.ones((3, 3)))[1] for category in np.unique(TRUTH["a.tar/1"])[1:]
    )

    def groups(root: Path) -> list[list[int | None]]:
        document = json.loads((root / "labelme/a.tar/1.json").read_text())
        first = next(iter(ET.parse(root / "cvat.xml").iter("image")))
        in_cvat = [int(group) if (group := polygon.get("group_id")) else None for polygon in first.iter("polygon")]
        return [[shape["group_id"] for shape in document["shapes"]], in_cvat]

    together = groups(exported)
    assert together[0] == together[1]
    assert len(together[0]) == expected
    assert sum(group is not None for group in together[0]) >= 3
    assert groups(apart) == [[None] * expected] * 2
    assert len(ET.parse(apart / "voc/Annotations/a.tar/1.xml").findall("object")) == expected
    assert len(json.loads((apart / "tasks.json").read_text())[0]["predictions"][0]["result"]) == expected


def test_small_components_are_left_out_of_every_format_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = np.zeros((HEIGHT, WIDTH), int)
    drawn[10:40, 10:40] = 1
    drawn[50:53, 50:53] = 1
    drawn[60:62, 60:62] = 2
    kept = np.where(drawn == 2, 0, drawn)
    kept[50:53, 50:53] = 0
    rows = [row(0, drawn, image_id="x.jpg")]
    root = export(write_labels(tmp_path / "labels", rows), tmp_path, "--min-area", "10")
    assert "Left out: 2 components of fewer than 10 pixels, and so 1 whole masks" in capsys.readouterr().out
    assert np.array_equal(label_maps(root)["x"], kept)
    assert np.array_equal(voc(root)["x"], kept)
    coco = COCO(str(root / "coco.json"))
    assert [annotation["area"] for annotation in coco.dataset["annotations"]] == [900]
    assert len((root / "yolo/labels/x.txt").read_text().splitlines()) == 1


def test_failed_rows_are_counted(labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(labels, tmp_path)
    printed = capsys.readouterr().out
    assert "Left out: 1 failed rows (empty 1)" in printed
    assert "where a.jpg and a.png are in one folder: 1 images" in printed


def test_images_are_linked_named_and_addressed(labels: Path, tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    root = export(labels, tmp_path / "out", "--images", str(images))
    assert (root / "yolo/images").resolve() == images
    document = json.loads((root / "labelme/b/1.json").read_text())
    assert (root / "labelme/b" / document["imagePath"]).resolve() == images / "b/1.jpg"
    addressed = {task["data"]["image"] for task in json.loads((root / "tasks.json").read_text())}
    assert str(images / "b/1.jpg") in addressed


def test_nothing_is_linked_over_images_or_to_nothing(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "yolo/images").mkdir(parents=True)
    (tmp_path / "yolo/images/1.jpg").touch()
    flags = ["--labels", str(labels), "--yolo", str(tmp_path / "yolo"), "--overwrite", "--images"]
    assert "images holds files already, so it cannot become a link" in refusal(main, *flags, str(tmp_path))
    assert "none is not a folder" in refusal(main, *flags, str(tmp_path / "none"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1.jpg", "images", "yolo"]


def test_folders_and_files_may_be_anywhere(labels: Path, exported: Path) -> None:
    targets = [part for name, target in FLAGS.items() for part in (f"--{name}", f"memory://exports/{target}")]
    assert main(["--labels", str(labels), *targets, "--val-fraction", "0.5"]) == 0
    memory = fsspec.filesystem("memory")
    written = {path.removeprefix("/exports/"): memory.cat_file(path) for path in memory.find("/exports")}
    local = {str(path.relative_to(exported)): path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    assert written == local


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give at least one of --output, --png, --yolo, --voc, --label-studio, --cvat, --labelme"),
        (["--yolo", "{tmp}/y", "--polygons"], "--polygons belongs to --output"),
        (["--yolo", "{tmp}/y", "--val-fraction", "1"], "--val-fraction must be at least 0 and less than 1"),
        (["--yolo", "{tmp}/y", "--min-area", "-1"], "--min-area must be at least 0, not -1"),
        (["--yolo", "{tmp}/y", "--simplify-px", "nan"], "--simplify-px must be a number of at least 0, not nan"),
        (["--yolo", "{tmp}/y", "--voc", "{tmp}/y"], "are the same place: give each format its own"),
        (["--yolo", "{labels}/y"], "choose a place outside the labels"),
        (["--cvat", "{tmp}/empty"], "is a folder: name a file"),
        (["--labelme", "{tmp}/there"], "exists already: choose another name, or --overwrite"),
        (["--label-studio", "{tmp}/t.json"], "t.label_config.xml exists already"),
        (["--yolo", "{tmp}/y", "--images", "s3://key:secret@bucket"], "--images carries credentials"),
    ],
)
def test_wrong_requests_are_one_sentence(flags: list[str], message: str, labels: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    (tmp_path / "t.label_config.xml").touch()
    before = sorted(tmp_path.rglob("*"))
    given = [text.replace("{tmp}", str(tmp_path)).replace("{labels}", str(labels)) for text in flags]
    assert message in refusal(main, "--labels", str(labels), *given)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("names", "flag", "message"),
    [
        ([f"class {number}" for number in range(255)], "--voc", "--voc holds at most 254 classes"),
        (["a", "background"], "--voc", "--voc cannot hold a class of the name 'background'"),
        (["a", "a:b"], "--voc", "--voc cannot hold a class of the name 'a:b'"),
        (["a", "line\nbreak"], "--yolo", "its name has characters that are no text"),
    ],
)
def test_classes_that_a_format_cannot_hold(names: list[str], flag: str, message: str, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels", [row(0, np.zeros((3, 3), int))], class_names=names)
    assert message in refusal(main, "--labels", str(labels), flag, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def damaged(change: str) -> dict[str, Any]:
    last = row(9, label_map(1), image_id="z.jpg")
    if change == "size":
        last["annotations"][0]["segmentation"]["size"] = [2**15, 2**15]
    elif change == "counts":
        larger = row(9, np.ones((2 * HEIGHT, WIDTH), int))["annotations"][0]
        last["annotations"][0]["segmentation"]["counts"] = larger["segmentation"]["counts"]
    else:
        last[change] = None
    return last


@pytest.mark.parametrize("change", ["size", "counts", "width", "annotations"])
def test_damaged_labels_leave_nothing_that_looks_complete(change: str, tmp_path: Path) -> None:
    """Not even what an older export has left there."""
    whole = write_labels(tmp_path / "whole", [row(0, label_map(0), image_id="a.jpg")])
    broken = write_labels(tmp_path / "broken", [row(0, label_map(0), image_id="a.jpg"), damaged(change)])
    root = export(whole, tmp_path / "out")
    targets = [part for name, target in FLAGS.items() for part in (f"--{name}", str(root / target))]
    sentence = refusal(main, "--labels", str(broken), *targets, "--overwrite")
    assert sentence.startswith("the labels are damaged: ")
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert left.isdisjoint({"yolo/data.yaml", "voc/labelmap.txt", "labelme/labels.txt", "png/id2label.json"})
    assert not [name for name in left if name.endswith(".part")]


def test_objects_beyond_those_that_voc_can_number_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = np.zeros((60, 60), int)
    drawn[::3, ::3] = 1
    drawn[0:2, 0:2] = 1
    labels = write_labels(tmp_path / "labels", [row(0, drawn, image_id="x.jpg")])
    assert main(["--labels", str(labels), "--voc", str(tmp_path / "voc"), "--split-components"]) == 0
    assert "146 objects beyond the 254" in capsys.readouterr().out
    objects = np.asarray(Image.open(tmp_path / "voc/SegmentationObject/x.png"))
    assert objects.max() == 254
    assert objects[1, 1] == 1, "the largest are kept"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "voc/SegmentationClass/x.png")), drawn)
