"""Draw images, label them with the truth, and export them for ``read.py`` beside this file.

Run it from the repository root: ``python -m tests.readers.write FOLDER``.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from demo.world.scene import draw
from jobs.export import main
from tests.support.drawn_labels import failure, row, shuffled, write_labels

IDS = [f"{folder}/{name}" for folder in ("a.tar", "b c") for name in ("1.jpg", "2.jpg", "3.png", "with space.jpg")]
HEIGHT, WIDTH = 240, 320


def write(folder: Path) -> None:
    """Write the images, their label maps (``truth``), the labels and all exports into a new folder."""
    rows = []
    for seed, image_id in enumerate(IDS):
        scene = draw(seed, HEIGHT, WIDTH)
        labels = scene.labels.copy()
        labels[40:200, 40:200] = 3  # a class with a hole, with an island in it
        labels[70:170, 70:170] = 0
        labels[100:140, 100:140] = 3
        rows.append(row(seed, labels.astype(np.int64), image_id=image_id))
        for target, pixels in (("images", scene.image), ("truth", labels)):
            path = folder / target / (image_id if target == "images" else f"{image_id}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    written = write_labels(folder / "labels", *shuffled([*rows, failure("gone.jpg")]))
    targets = {
        "yolo": "yolo",
        "voc": "voc",
        "label-studio": "tasks.json",
        "cvat": "cvat/cvat.xml",
        "labelme": "labelme",
    }
    flags = [part for name, target in targets.items() for part in (f"--{name}", str(folder / target))]
    assert main(["--labels", str(written), "--images", str(folder / "images"), "--val-fraction", "0.4", *flags]) == 0


if __name__ == "__main__":
    write(Path(sys.argv[1]))
