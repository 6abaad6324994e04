"""Draw pictures, label them with the job, measure the labels against what was drawn, and write a page about it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tyro
from rich.console import Console

from cliper.models import DEMO, find_clip
from demo.corpus import HEIGHT_PX, WIDTH_PX, seed_of, write_corpus
from demo.metrics import Scoreboard
from demo.report import Example, write_report
from demo.world.names import NAMES
from demo.world.scene import draw
from schemas.runs import labels_from_annotations

ROOT = Path(__file__).parents[1]
ON_THE_PAGE = 30


@dataclass(frozen=True)
class DemoOptions:
    """Size and place of the demo."""

    folder: Path = Path("demo-output")
    """Where the corpus, the labels and the page go."""
    pictures: int = 240
    """How many pictures to draw."""
    pictures_per_shard: int = 60
    """How many of them in a tar shard."""


def main(options: DemoOptions) -> int:
    """Run the demo; returns the job's exit code."""
    console = Console()
    console.print(f"Drawing {options.pictures} landscapes ...", highlight=False)
    write_corpus(options.folder / "corpus", range(options.pictures), options.pictures_per_shard)
    started = time.monotonic()
    job = subprocess.run(annotate_command(options.folder), cwd=ROOT)
    if job.returncode != 0:
        return job.returncode
    seconds = time.monotonic() - started

    board = Scoreboard(len(NAMES), find_clip(DEMO).defaults.score_threshold)
    examples = []
    for row in rows(options.folder / "labels"):
        seed = seed_of(row["image_id"])
        truth = draw(seed, HEIGHT_PX, WIDTH_PX)
        labels = labels_from_annotations(row["annotations"], row["height"], row["width"])
        board.add(labels, row["class_scores"], truth.labels)
        if seed < ON_THE_PAGE:
            examples.append(Example(seed, truth, labels, row["class_scores"]))
    figures = board.figures(seconds)
    (options.folder / "metrics.json").write_text(json.dumps(asdict(figures), indent=1))
    page = options.folder / "report.html"
    write_report(page, figures, board.iou(), sorted(examples, key=lambda example: example.seed))
    console.print(
        f"Mean IoU {figures.miou:.1%} and image-level mean average precision {figures.map:.1%} over {figures.pictures} "
        f"pictures, labelled in {figures.seconds:.0f} s. Look at {page}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def annotate_command(folder: Path) -> list[str]:
    """The job as a user would call it."""
    paths = ["--input", str((folder / "corpus").resolve()), "--output", str((folder / "labels").resolve())]
    words = ["--vocab", "demo/vocab.txt", "--background", "none"]
    return [sys.executable, "jobs/annotate.py", *paths, *words, "--clip", DEMO, "--diffusion", DEMO, "--overwrite"]


def rows(labels: Path) -> Iterator[dict[str, Any]]:
    """The job's rows."""
    for path in sorted(labels.glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(DemoOptions, description=__doc__)))
