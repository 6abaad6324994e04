"""The report page: charts and sample images with overlays in one file that needs no network."""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cliper.settings import MethodSettings
from cluster.output.rows import Labels
from jobs.common.counts import BINS_PER_UNIT, Counts
from jobs.page.images import Row, Unreadable
from schemas.colours import class_colours
from schemas.runs import labels_from_annotations

WEBP_QUALITY = 80
MAX_OVERLAY_CLASSES = 255
"""One byte per pixel. Of more classes in an image, the smallest are left out."""
NEAR_MISSES = 5
"""Number of classes that are shown with their scores although they were not found, highest score first."""


def make_thumbnail(row: Row, image: Image.Image, longer_side_px: int) -> dict[str, Any]:
    """Reduce an image and its masks, for the page and its script.

    Args:
        row: the image's row, with annotations.
        image: RGB; it is reduced in place.
        longer_side_px: longer side of the thumbnail. Smaller images keep their size.

    Returns:
        A sample image:

        * ``image_id`` as in the row, and ``original``, width and height of the image in pixels;
        * ``address``, a ``data:`` URL of the thumbnail, and its ``width`` and ``height`` in pixels;
        * ``found``: for each class found its index from 0, score, share of the area and None, highest score first;
        * ``near_misses``: the same for classes not found, without a share, and with the background word that each lost
          to, if there is one;
        * ``probabilities`` of all classes, or None;
        * ``overlay``: label map in the thumbnail's size, one byte per pixel, zlib, base64. 0 is background, n is the
          n-th entry of ``overlay_classes``, which are class indices from 0.
    """
    image.thumbnail((longer_side_px, longer_side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    area = row["width"] * row["height"]
    found = [(entry["category_id"] - 1, entry["score"], entry["area"] / area, None) for entry in row["annotations"]]
    present = {index for index, *_ in found}
    lost_to = {entry["category_id"] - 1: entry["background"] for entry in row["lost_to"] or ()}
    others = [index for index in np.argsort(row["class_scores"])[::-1].tolist() if index not in present]
    overlay, overlay_classes = overlay_of(row, image.size)
    return {
        "image_id": row["image_id"],
        "address": f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
        "width": image.width,
        "height": image.height,
        "original": (row["width"], row["height"]),
        "found": sorted(found, key=lambda entry: -entry[1]),
        "near_misses": [
            (index, row["class_scores"][index], None, lost_to.get(index)) for index in others[:NEAR_MISSES]
        ],
        "probabilities": row["class_probabilities"],
        "overlay": overlay,
        "overlay_classes": overlay_classes,
    }


def overlay_of(row: Row, size: tuple[int, int]) -> tuple[str, list[int]]:
    """A row's label map, reduced to a width and height, and the indices of its classes."""
    largest = sorted(row["annotations"], key=lambda entry: -entry["area"])[:MAX_OVERLAY_CLASSES]
    labels = labels_from_annotations(largest, row["height"], row["width"])
    categories = np.array([0, *(entry["category_id"] for entry in largest)])
    positions = np.zeros(categories.max() + 1, np.uint8)
    positions[categories] = np.arange(len(categories))
    reduced = Image.fromarray(positions[labels]).resize(size, Image.Resampling.NEAREST)
    packed = zlib.compress(reduced.tobytes(), level=9)
    return base64.b64encode(packed).decode("ascii"), (categories[1:] - 1).tolist()


def render_page(
    labels: Labels,
    summary: dict[str, Any],
    counts: Counts,
    thumbnails: Sequence[dict[str, Any]],
    unreadable: Sequence[Unreadable],
) -> str:
    """The page as HTML. Text from rows and manifest is escaped.

    ``summary`` is the job's, or empty. `make_thumbnail` made the ``thumbnails``.
    """
    environment = Environment(
        loader=PackageLoader("jobs.page"), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"thousands": "{:,}".format, "percent": percent}
    names = labels.class_names
    facts_of_classes = zip(names, class_colours(len(names)), counts.images_by_class.tolist(), strict=True)
    classes = [
        {"index": index, "name": name, "colour": colour, "images": images}
        for index, (name, colour, images) in enumerate(facts_of_classes)
    ]
    failures = [
        {"status": status, "images": images, "example": counts.example_errors[status]}
        for status, images in counts.by_status.most_common()
        if status in counts.example_errors
    ]
    settings = labels.manifest.get("settings")
    thresholds = (
        MethodSettings.from_document(settings).score_thresholds(len(names)) if settings else [None] * len(names)
    )
    data = {
        "classes": [{"name": entry["name"], "colour": entry["colour"]} for entry in classes],
        "thresholds": thresholds,
        "histograms": counts.histograms.transpose(1, 0, 2).tolist(),
        "binWidth": 1 / BINS_PER_UNIT,
        "images": [{name: fact for name, fact in image.items() if name != "address"} for image in thumbnails],
    }
    return environment.get_template("report.html.j2").render(
        labels=labels, counts=counts, facts=facts(labels.manifest, summary), data=data, classes=classes,
        by_images=sorted(classes, key=lambda entry: -entry["images"]), failures=failures,
        sampled_classes=sorted({index for image in thumbnails for index, *_ in image["found"]}),
        thumbnails=thumbnails, unreadable=unreadable,
    )  # fmt: skip


def percent(share: float) -> str:
    """``0.1234`` as ``12.3 %``. Small positive shares are never shown as zero."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def facts(manifest: dict[str, Any], summary: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The request and the last run, grouped under headings."""
    vocabulary, settings = manifest.get("vocabulary", {}), manifest.get("settings", {})
    found = {
        "Models": {
            role: f"{model['name']} ({model['revision']})" for role, model in manifest.get("models", {}).items()
        },
        "Vocabulary": {
            "classes": f"{len(manifest['categories']):,}",
            "background words": f"{len(vocabulary.get('background', ())):,}",
            "prompt templates": f"{len(vocabulary.get('templates', ())):,}",
        },
        "Input": {name: value for name, value in manifest.get("input", {}).items() if value is not None},
        "Settings": {
            name.replace("_", " "): f"{len(value):,} values" if isinstance(value, list) else value
            for name, value in settings.items()
            if value != []
        },
    }
    seconds = summary.get("seconds")
    if seconds:
        images = summary.get("new_images", 0)
        found["Last run"] = {
            "images": f"{images:,}", "seconds": f"{seconds:,.1f}", "images per second": f"{images / seconds:.2f}",
            "read": f"{summary.get('bytes_read', 0) / 1e6:,.1f} MB",
        }  # fmt: skip
    found["Fingerprint"] = {"SHA-256": manifest.get("fingerprint", "unknown")}
    return {
        heading: {name: str(value) for name, value in entries.items()} for heading, entries in found.items() if entries
    }
