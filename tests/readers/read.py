"""Read exports with the readers that people use, and compare the masks with the truth.

It needs ``requirements.txt`` beside it, and nothing of this project: ``python tests/readers/read.py FOLDER``, with a
folder that `tests.readers.write` made. It fails if a reader refuses a file or sees another mask.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

LEAST_AGREEMENT = 0.97
"""Share of an image's pixels that polygons must leave as they were. Masks must leave all."""


def truth(root: Path) -> dict[str, np.ndarray]:
    """The label maps by image id without its ending."""
    files = sorted((root / "truth").rglob("*.png"))
    return {str(file.relative_to(root / "truth").with_suffix("").with_suffix("")): pixels_of(file) for file in files}


def pixels_of(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def class_names(root: Path) -> list[str]:
    return (root / "labelme/labels.txt").read_text().split("\n")[:-1]


def compare(reader: str, root: Path, found: dict[str, np.ndarray], least: float) -> None:
    """Print how well the label maps agree. Fails if they do not, or if images are missing."""
    expected = truth(root)
    assert found.keys() == expected.keys()
    agreements = [(found[name] == labels).mean() for name, labels in expected.items()]
    print(f"{reader}: {len(found)} images, pixels that agree: {min(agreements):.4f} at least")
    assert min(agreements) >= least


def yolo(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Ultralytics' data set for training."""
    os.environ["YOLO_CONFIG_DIR"], os.environ["YOLO_OFFLINE"] = str(root), "true"
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask

    data = check_det_dataset(str(root / "yolo/data.yaml"), autodownload=False)
    assert list(data["names"].values()) == class_names(root)
    for part in ("train", "val"):
        for image in YOLODataset(img_path=data[part], data=data, task="segment", augment=False).labels:
            labels = np.zeros(image["shape"], np.uint8)
            for category, outline in zip(image["cls"][:, 0], image["segments"], strict=True):
                points = outline * image["shape"][::-1]
                labels[polygon2mask(image["shape"], [points.ravel()]) > 0] = category + 1
            yield str(Path(image["im_file"]).relative_to(root / "yolo/images").with_suffix("")), labels


def label_studio(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The SDK's decoder of brushes, and its check of tasks against the labelling interface."""
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((root / "tasks.label_config.xml").read_text())
    names = class_names(root)
    for task in json.loads((root / "tasks.json").read_text()):
        assert interface.validate_task({"data": task["data"]})
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction)
        shape = prediction["result"][0]["original_height"], prediction["result"][0]["original_width"]
        labels = np.zeros(shape, np.uint8)
        for region in prediction["result"]:
            alpha = decode_rle(region["value"]["rle"]).reshape(*shape, 4)[:, :, 3]
            labels[alpha > 0] = names.index(region["value"]["brushlabels"][0]) + 1
        yield os.path.splitext(task["data"]["image_id"])[0], labels


def cvat(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Datumaro's reader of CVAT's XML. It finds the images in ``images`` beside the file."""
    import datumaro
    from datumaro.util.mask_tools import rles_to_mask

    (root / "cvat/images").symlink_to(root / "images")
    dataset = datumaro.Dataset.import_from(str(root / "cvat"), "cvat")
    categories = dataset.categories()[datumaro.AnnotationType.label]
    assert [label.name for label in categories] == class_names(root)
    for item in dataset:
        labels = np.zeros(item.media.size, np.uint8)
        for polygon in item.annotations:
            pixels = rles_to_mask([polygon.points], *item.media.size[::-1])
            labels[pixels.astype(bool)] = polygon.label + 1
        yield item.id, labels


def voc(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Datumaro's reader of Pascal VOC: the masks of classes and objects."""
    import datumaro

    dataset = datumaro.Dataset.import_from(str(root / "voc"), "voc")
    categories = dataset.categories()[datumaro.AnnotationType.label]
    assert [label.name for label in categories] == ["background", *class_names(root)]
    for item in dataset.get_subset("trainval"):
        masks = [entry for entry in item.annotations if entry.type == datumaro.AnnotationType.mask]
        boxes = [entry for entry in item.annotations if entry.type == datumaro.AnnotationType.bbox]
        assert sorted(entry.label for entry in masks) == sorted(entry.label for entry in boxes)
        labels = np.zeros(masks[0].image.shape, np.uint8)
        for mask in masks:
            labels[mask.image.astype(bool)] = mask.label
        yield item.id, labels


def labelme(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """LabelMe's own file class, which loads the image as well, and its drawing of shapes."""
    from labelme import LabelFile
    from labelme.utils import shapes_to_label

    names = {name: number for number, name in enumerate(class_names(root), start=1)}
    for file in sorted((root / "labelme").rglob("*.json")):
        read = LabelFile(str(file))
        shape = json.loads(file.read_text())
        labels, _ = shapes_to_label((shape["imageHeight"], shape["imageWidth"], 3), read.shapes, names)
        yield str(file.relative_to(root / "labelme"))[: -len(".json")], labels


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    for reader in (labelme, label_studio, voc, yolo, cvat):
        compare(reader.__name__, place, dict(reader(place)), 1.0 if reader in (label_studio, voc) else LEAST_AGREEMENT)
