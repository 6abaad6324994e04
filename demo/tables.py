"""The paper's ablations in miniature, on held-out drawn pictures, written into the demo model's card."""

import os
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.progress import track

from cliper.models import DEMO
from demo.evaluate import ALL_NAMES, EvaluateOptions, Task, evaluate
from demo.metrics import Figures
from demo.world.names import CATEGORY, NAMES, PAINTED, PAINTS
from demo.world.scene import Picture
from jobs.common.options import MethodOptions
from jobs.common.request import find_models
from jobs.evaluation import ablations
from schemas.vocabulary import VocabularyClass


def demo_method(**settings: Any) -> MethodOptions:
    """The demo models, with settings of the method."""
    return MethodOptions(clip=DEMO, diffusion=DEMO, **settings)


WITH_BACKGROUND = demo_method(background_threshold=0.5)
"""For vocabularies that do not cover everything in the picture."""
COMPONENTS = {title: demo_method(**changes) for title, changes in ablations.COMPONENTS.items()}
COMPENSATIONS = {title: demo_method(**changes) for title, changes in ablations.COMPENSATIONS.items()}
WORKERS = 1 if torch.cuda.is_available() else os.cpu_count() or 1
KINDS = {"plant": ("tree", "flower", "cactus"), "vehicle": ("car", "boat"), "building": ("house", "tent")}
"""Words that no caption contains, and the names that they cover."""


@dataclass(frozen=True)
class TablesOptions:
    """Which pictures, and where the card goes."""

    seed: int = 10_000
    """First picture's seed; training pictures have seeds from 1,000,000 on."""
    pictures: int = 500
    """How many pictures to draw."""
    output: Path = Path("docs/demo-model.md")
    """Markdown file."""


class Lookup:
    """A picture's true label map in another vocabulary.

    Args:
        categories: for each category of the drawn world, from 0 for background, the category in the vocabulary.
    """

    def __init__(self, categories: np.ndarray) -> None:
        self.categories = categories

    def __call__(self, picture: Picture) -> np.ndarray:
        labels: np.ndarray = self.categories[picture.labels]
        return labels


def paints_of(picture: Picture) -> np.ndarray:
    return picture.paints


def kinds(described: bool) -> Task:
    """Plants, vehicles and buildings: by the word alone, or described by the names that they cover."""
    classes = tuple(VocabularyClass(kind, names if described else (kind,)) for kind, names in KINDS.items())
    table = np.zeros(len(NAMES) + 1, np.uint8)
    for category, names in enumerate(KINDS.values(), start=1):
        table[[CATEGORY[name] for name in names]] = category
    covered = {name for names in KINDS.values() for name in names}
    rest = tuple(name for name in NAMES if name not in covered)
    return Task(classes, rest, Lookup(table))


def paints() -> Task:
    """Painted things by colour, whatever they are."""
    classes = tuple(VocabularyClass(f"{paint} thing", (f"{paint} thing",)) for paint in PAINTS)
    return Task(classes, tuple(name for name in NAMES if name not in PAINTED), paints_of)


def measure(options: TablesOptions, method: MethodOptions, task: Task) -> Figures:
    """Figures of one setting."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    board, seconds = evaluate(EvaluateOptions(method, options.seed, options.pictures), find_models(method), task)
    return board.figures(seconds)


def main(options: TablesOptions) -> None:
    """Measure all tables and write the card."""
    runs: dict[Any, tuple[MethodOptions, Task]] = {
        **{title: (method, ALL_NAMES) for title, method in (COMPONENTS | COMPENSATIONS).items()},
        **{
            (name, early): (demo_method(**ablations.attention_row(name, early)), ALL_NAMES)
            for name in ablations.ATTENTIONS
            for early in (False, True)
        },
        **{title: (WITH_BACKGROUND, task) for title, task in OTHER_VOCABULARIES.items()},
    }
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as workers:
        started = {run: workers.submit(measure, options, *run) for run in dict.fromkeys(runs.values())}
        results = {run: future.result() for run, future in track(started.items(), "Measuring")}
    figures = {key: results[run] for key, run in runs.items()}
    environment = Environment(loader=PackageLoader("demo"), undefined=StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    card = environment.get_template("demo-model.md.j2").render(
        options=options, date=datetime.now(UTC).date(), commit=current_commit(), figures=figures,
        components=COMPONENTS, attentions=ablations.ATTENTIONS, compensations=COMPENSATIONS, others=OTHER_VOCABULARIES,
    )  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(card, encoding="utf-8")


def current_commit() -> str:
    """Short hash of the commit that is checked out."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


OTHER_VOCABULARIES = {
    "plant, vehicle, building: the words alone": kinds(described=False),
    "plant: tree; flower; cactus and so on": kinds(described=True),
    "red thing, blue thing, ...": paints(),
}


if __name__ == "__main__":
    main(tyro.cli(TablesOptions, description=__doc__))
