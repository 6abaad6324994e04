"""How right are labels? Figures over pictures whose masks are known."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from cliper.metrics import presence_figures


@dataclass(frozen=True)
class Figures:
    """Figures over all pictures; shares are 0 to 1.

    Attributes:
        miou: mean intersection over union of the label maps, over the names that were drawn or predicted.
        map: mean average precision of the max-pooled class scores at image level, over the names that were drawn.
        precision, recall, f1: of the names whose score is above the threshold, counted over all pictures together.
        pictures: how many.
        seconds: how long labelling took.
    """

    miou: float
    map: float
    precision: float
    recall: float
    f1: float
    pictures: int
    seconds: float


class Scoreboard:
    """Sums up what the figures need.

    Args:
        categories: number of names; a picture's truth holds them from 1.
        score_threshold: a name is predicted where its score is above it.
    """

    def __init__(self, categories: int, score_threshold: float) -> None:
        self.categories, self.score_threshold = categories, score_threshold
        self.confusion = MulticlassConfusionMatrix(categories + 1)
        self.scores: list[Tensor] = []
        self.present: list[Tensor] = []

    def add(self, labels: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> None:
        """Count a picture.

        Args:
            labels: predicted label map [height, width], 0 is background.
            scores: score of every name [categories].
            truth: true label map [height, width].
        """
        self.confusion.update(torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)))
        present = torch.zeros(self.categories, dtype=torch.int64)
        present[[category - 1 for category in np.unique(truth).tolist() if category]] = 1
        self.scores.append(torch.from_numpy(np.asarray(scores, np.float32)))
        self.present.append(present)

    def iou(self) -> list[float | None]:
        """Intersection over union of each name; None where it was neither drawn nor predicted."""
        return [float(share) if share == share else None for share in class_iou(self.confusion.compute())]

    def figures(self, seconds: float) -> Figures:
        scores, present = torch.stack(self.scores), torch.stack(self.present)
        presence = presence_figures(scores, present, torch.full((self.categories,), self.score_threshold))
        miou = float(class_iou(self.confusion.compute()).nanmean())
        return Figures(miou, **vars(presence), pictures=len(scores), seconds=round(seconds, 2))


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of every name but background; NaN where it was neither drawn nor predicted.

    Args:
        confusion: row is truth, column prediction, 0 is background.
    """
    hits = confusion.diag()
    return (hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits))[1:]
