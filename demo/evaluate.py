"""How right are the labels? Figures on freshly drawn pictures, whose masks are known."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from torchmetrics.classification import MulticlassConfusionMatrix, MultilabelAveragePrecision

from cliper.templates import CAR_TEMPLATES
from cluster.annotator import AnnotatorSpec
from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.options import MethodOptions
from jobs.request import Models, VocabularyRequest, find_models
from schemas.vocabulary import VocabularyClass


@dataclass(frozen=True)
class EvaluateOptions:
    """Which pictures to draw and what to label them with."""

    method: MethodOptions
    seed: int = 0
    """First picture's seed; training pictures have seeds from 1,000,000 on."""
    pictures: int = 100
    """How many pictures to draw."""
    height_px: int = 144
    """Their height."""
    width_px: int = 192
    """Their width."""
    json: Path | None = None
    """File for the figures."""


@dataclass(frozen=True)
class Figures:
    """Figures over all pictures.

    Attributes:
        miou: mean intersection over union of the label maps over the names, 0 to 1.
        map: mean average precision of the max-pooled class scores at image level, 0 to 1.
        pictures: how many.
        seconds: how long labelling took, without loading models.
    """

    miou: float
    map: float
    pictures: int
    seconds: float


def evaluate(options: EvaluateOptions, models: Models) -> Figures:
    """Draw pictures, label them with all names as one vocabulary, and compare with what was drawn.

    Raises:
        RequestError: a model cannot be loaded.
    """
    classes = tuple(VocabularyClass(name, (name,)) for name in NAMES)
    vocabulary = VocabularyRequest(classes, background=(), templates=CAR_TEMPLATES, ready=None)
    spec = AnnotatorSpec(
        models.clip, models.diffusion, models.empty_prompt(), vocabulary.embed(models.clip), models.settings,
        options.method.resolved_precision(),
    )  # fmt: skip
    cliper = spec.build(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    confusion = MulticlassConfusionMatrix(len(NAMES) + 1)
    all_scores, all_present = [], []
    seconds = 0.0
    for seed in range(options.seed, options.seed + options.pictures):
        picture = draw(seed, options.height_px, options.width_px)
        started = time.monotonic()
        (annotation,) = cliper.annotate([picture.image], [seed])
        labels, scores = annotation.labels.cpu(), annotation.scores.cpu()
        seconds += time.monotonic() - started
        confusion.update(labels, torch.from_numpy(picture.labels.astype(np.int64)))
        present = torch.zeros(1, len(NAMES), dtype=torch.int64)
        present[0, [category - 1 for category in picture.categories]] = 1
        all_scores.append(scores)
        all_present.append(present)
    mean_precision = mean_average_precision(torch.stack(all_scores), torch.cat(all_present))
    return Figures(mean_iou(confusion.compute()), mean_precision, options.pictures, round(seconds, 2))


def mean_average_precision(scores: torch.Tensor, present: torch.Tensor) -> float:
    """Mean over the names that occur: torchmetrics counts a name that never does as 0.

    Args:
        scores: at least 0, any scale [pictures, names].
        present: 0 or 1 [pictures, names].
    """
    occurring = present.any(dim=0)
    metric = MultilabelAveragePrecision(int(occurring.sum()))
    shares = scores[:, occurring] / scores.max().clamp(min=1.0)  # beyond 1 torchmetrics would take them for logits
    return float(metric(shares, present[:, occurring]))


def mean_iou(confusion: torch.Tensor) -> float:
    """Mean over the names that were drawn or predicted; row is truth, column prediction, 0 is background."""
    hits = confusion.diag()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - hits
    seen = union[1:] > 0
    return float((hits[1:][seen] / union[1:][seen]).mean())


def main(options: EvaluateOptions) -> None:
    """Evaluate, print and write the figures."""
    figures: dict[str, Any] = asdict(evaluate(options, find_models(options.method)))
    Console().print_json(json.dumps(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main(tyro.cli(EvaluateOptions, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
