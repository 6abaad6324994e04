"""How right are the labels? Figures on freshly drawn pictures, whose masks are known."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console

from cliper.models import DEMO
from cliper.templates import CAR_TEMPLATES
from demo.metrics import Scoreboard
from demo.world.names import NAMES
from demo.world.scene import Picture, draw
from jobs.common.options import MethodOptions
from jobs.common.request import Models, VocabularyRequest, find_models
from schemas.runs import labels_from_runs
from schemas.vocabulary import VocabularyClass


@dataclass(frozen=True)
class Task:
    """What to look for in the pictures, and where it really is.

    Attributes:
        classes: the vocabulary.
        background: background phrases.
        truth: a picture's true label map; 0 is background, c + 1 is class c.
    """

    classes: tuple[VocabularyClass, ...]
    background: tuple[str, ...]
    truth: Callable[[Picture], np.ndarray]


def labels_of(picture: Picture) -> np.ndarray:
    return picture.labels


ALL_NAMES = Task(tuple(VocabularyClass(name, (name,)) for name in NAMES), (), labels_of)
"""Every name as one vocabulary; nothing is background."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Which pictures to draw and what to label them with."""

    method: MethodOptions = field(default_factory=lambda: MethodOptions(clip=DEMO, diffusion=DEMO))
    seed: int = 0
    """First picture's seed; training pictures have seeds from 1,000,000 on."""
    pictures: int = 100
    """How many pictures to draw."""
    height_px: int = 240
    """Their height."""
    width_px: int = 320
    """Their width."""
    json: Path | None = None
    """File for the figures."""


def evaluate(options: EvaluateOptions, models: Models, task: Task = ALL_NAMES) -> tuple[Scoreboard, float]:
    """Draw pictures, label them, and compare with what was drawn.

    Returns:
        The counts, and how many seconds labelling took (neither drawing nor loading).

    Raises:
        RequestError: a model cannot be loaded.
    """
    vocabulary = VocabularyRequest(task.classes, task.background, CAR_TEMPLATES, ready=None)
    spec = models.spec(vocabulary.embed(models.clip), options.method.precision)
    cliper = spec.build(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    board = Scoreboard(len(task.classes), models.settings.score_threshold)
    seconds = 0.0
    for seed in range(options.seed, options.seed + options.pictures):
        picture = draw(seed, options.height_px, options.width_px)
        started = time.monotonic()
        (prediction,) = cliper.predict([spec.inputs.prepare(Image.fromarray(picture.image), seed)])
        runs, scores = prediction.runs, prediction.scores
        labels = labels_from_runs(runs.starts, runs.labels, runs.image_hw)
        seconds += time.monotonic() - started
        board.add(labels, scores, task.truth(picture))
    return board, seconds


def main(options: EvaluateOptions) -> None:
    """Evaluate, print and write the figures."""
    board, seconds = evaluate(options, find_models(options.method))
    figures = json.dumps(asdict(board.figures(seconds)))
    Console().print_json(figures)
    if options.json is not None:
        options.json.write_text(figures)


if __name__ == "__main__":
    main(tyro.cli(EvaluateOptions, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
