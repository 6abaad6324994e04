"""What labelling says of an image, for programs and notebooks: scores, masks, COCO, drawings."""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image

from cliper.drawing import draw_overlay
from schemas.coco import annotations_file
from schemas.manifest import coco_categories

if TYPE_CHECKING:
    import supervision

SHOWN_PX = 1024
"""Longer side of the image that a notebook shows."""


@dataclass(frozen=True, eq=False)
class Result:
    """The labels of one image. Sizes are those of the image after its EXIF orientation was applied.

    Attributes:
        name: of the image: its path or URL, or what the caller gave.
        classes: names of the classes, in vocabulary order.
        scores: class name to max-pooled image-level score, in vocabulary order; at least 0, may exceed 1.
        probabilities: class name to the probability that the image shows the class, 0 to 1, a monotone function of its
            score; None with presets other than ``open``.
        labels: the label map; 0 is background, c + 1 is class c. A class is present if it has a pixel.
        annotations: COCO annotations as in the job's rows, one per class that is present, ascending ``category_id``
            (position in the vocabulary, from 1), with compressed run-length masks (`schemas.rows.ANNOTATION`).
        lost_to: for up to five absent classes, those with the highest scores, the background word that is more probable
            where the class's map is highest.
        refined: with ``skip_absent`` the classes whose scores are final; scores of the others are upper bounds. None
            without.
        image: RGB, upright.
    """

    name: str
    classes: tuple[str, ...] = field(repr=False)
    scores: dict[str, float]
    probabilities: dict[str, float] | None = field(repr=False)
    labels: Int32[np.ndarray, "height width"] = field(repr=False)
    annotations: list[dict[str, Any]] = field(repr=False)
    lost_to: dict[str, str] = field(repr=False)
    refined: tuple[str, ...] | None = field(repr=False)
    image: Image.Image = field(repr=False)

    @cached_property
    def masks(self) -> dict[str, Bool[np.ndarray, "height width"]]:
        """Class name to mask, for the classes that are present, in vocabulary order. Masks are disjoint."""
        found = (entry["category_id"] for entry in self.annotations)
        return {self.classes[label - 1]: self.labels == label for label in found}

    def overlay(self, alpha: float = 0.5, names: bool = True) -> Image.Image:
        """The image with its masks in colours, RGB, in the image's own size.

        The colour of a class depends only on its position in the vocabulary, as on the page of ``jobs/report.py``.

        Args:
            alpha: opacity of the colours, 0 to 1.
            names: write each class's name into its mask.
        """
        return draw_overlay(self.image, self.labels, self.classes, alpha, names)

    def to_coco(self) -> dict[str, Any]:
        """A complete COCO document of this image; see `to_coco`."""
        return to_coco([self])

    def to_supervision(self) -> "supervision.Detections":
        """The masks as ``supervision.Detections``: one per class that is present, with boxes in pixels.

        ``class_id`` counts from 0, ``confidence`` is the score, and ``data["class_name"]`` has the names.

        Raises:
            ImportError: the package supervision is not installed.
        """
        import supervision

        if not self.annotations:
            return supervision.Detections.empty()
        boxes = np.array([entry["bbox"] for entry in self.annotations], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return supervision.Detections(
            xyxy=boxes,
            mask=np.stack(list(self.masks.values())),
            confidence=np.array([entry["score"] for entry in self.annotations], np.float32),
            class_id=np.array([entry["category_id"] - 1 for entry in self.annotations]),
            data={"class_name": np.array(list(self.masks))},
        )

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the overlay, no longer than `SHOWN_PX`."""
        shown = self.overlay()
        shown.thumbnail((SHOWN_PX, SHOWN_PX))
        file = io.BytesIO()
        shown.save(file, "PNG")
        return file.getvalue()


def to_coco(results: Iterable[Result]) -> dict[str, Any]:
    """A complete COCO document as ``jobs/export.py`` writes it: ``images``, ``annotations`` and ``categories``.

    Ids of images and annotations count from 1. An image's ``file_name`` is the result's name.

    Raises:
        ValueError: there is no result, or results have different classes.
    """
    results = list(results)
    if len({result.classes for result in results}) != 1:
        raise ValueError("a COCO document needs results, all with the same classes")
    file, annotation_id = io.BytesIO(), 0
    with annotations_file(file, coco_categories(results[0].classes), "Labels by CLIPer") as add:
        for image_id, result in enumerate(results, start=1):
            height, width = result.labels.shape
            ids = range(annotation_id + 1, annotation_id + 1 + len(result.annotations))
            annotation_id += len(result.annotations)
            add(
                {"id": image_id, "width": width, "height": height, "file_name": result.name},
                ({"id": i, "image_id": image_id} | entry for i, entry in zip(ids, result.annotations, strict=True)),
            )
    document: dict[str, Any] = json.loads(file.getvalue())
    return document
