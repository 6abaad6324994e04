"""Draw images, annotate them, compare the labels with the drawn masks, and write a page.

The demo runs ``python -m demo.world``, ``jobs/annotate.py`` and ``jobs/report.py``. The figures describe the rows of
the annotation job: mean IoU of their label maps and average precision of their class scores. They are written as
``jobs/evaluate.py --json`` writes them. That job itself would annotate every image a second time.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tyro
from PIL import Image

from cliper.models import DEMO
from cliper.settings import MethodSettings
from demo.world import __main__ as world
from demo.world.names import NAMES
from jobs import annotate, report
from jobs.common.exit_codes import plain_console
from jobs.evaluation.figures import Comparison, EvaluationCounts, Figures, figures_of, indicator
from schemas.runs import labels_from_annotations


def main(folder: Path = Path("demo-output"), images: int = 240) -> int:
    """Run the demo. Returns the exit code of the first command that fails, else 0.

    Args:
        folder: Folder for images, masks, labels, metrics.json and report.html.
        images: Number of images.
    """
    console = plain_console()
    console.print(f"Drawing {images} landscapes ...")
    world.main(folder, images=images)
    labels, page = str(folder / "labels"), str(folder / "report.html")
    places = ["--input", str(folder / "images"), "--limit", str(images), "--output", labels, "--overwrite"]
    words = ["--vocab", str(folder / "classes.txt"), "--background", "none"]
    models = ["--clip", DEMO, "--diffusion", DEMO, "--max-failed-fraction", "0"]
    exit_code = annotate.main([*places, *words, *models]) or report.main(["--labels", labels, "--output", page])
    if exit_code:
        return exit_code
    figures = measure(folder / "labels", folder / "masks")
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    quality = f"Mean IoU {figures['miou']:.1f} % and image-level mean average precision {figures['map']:.1f} %"
    console.print(f"{quality} over {figures['images']} images. Look at {page}", soft_wrap=True)
    return 0


def measure(labels: Path, masks: Path) -> Figures:
    """Compare the rows of the annotation job with the masks.

    ``seconds_per_image`` is the duration of the whole job, start-up included, divided by the number of images.
    """
    manifest, summary = (json.loads((labels / name).read_text()) for name in ("manifest.json", "summary.json"))
    rows = [row for path in sorted(labels.glob("rows/*.parquet")) for row in pq.read_table(path).to_pylist()]
    confusion = np.zeros((len(NAMES) + 1, len(NAMES) + 1), np.int64)
    present = []
    for row in rows:
        truth = np.asarray(Image.open(masks / f"{Path(row['image_id']).stem}.png"))
        predicted = labels_from_annotations(row["annotations"], row["height"], row["width"])
        np.add.at(confusion, (truth, predicted), 1)
        present.append(np.unique(truth).tolist())
    scores = np.array([row["class_scores"] for row in rows], np.float32)
    sums = EvaluationCounts(
        confusion, scores, indicator(present, len(NAMES)), failed=0, seconds=summary["seconds"], coarser=0
    )
    thresholds = MethodSettings.from_document(manifest["settings"]).score_thresholds(len(NAMES))
    return figures_of("annotation job", sums, NAMES, thresholds, Comparison(), manifest["settings"])


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
