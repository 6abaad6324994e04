"""The report page: charts and sample images with overlays in one file that needs no network."""

import base64
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cliper.settings import MethodSettings
from cluster.output.rows import Labels
from jobs.common.counts import BINS_PER_UNIT, Counts
from jobs.page.colours import page_colours
from jobs.page.images import Row, Unreadable
from schemas.runs import labels_from_annotations

WEBP_QUALITY = 80
MAX_OVERLAY_CLASSES = 255
"""One byte per pixel. Of more classes in an image, the smallest are left out."""


@dataclass(frozen=True)
class Run:
    """The output of a labelling job, for the page.

    Attributes:
        labels: its rows and manifest.
        counts: over all its rows.
        summary: the job's ``summary.json``, or empty.
    """

    labels: Labels
    counts: Counts
    summary: dict[str, Any]

    def facts(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What the page's script needs. ``numbers`` are those of the run's classes on the page."""
        names = self.labels.class_names
        document = self.labels.manifest.get("settings")
        settings = MethodSettings.from_document(document) if document else None
        return {
            "classes": numbers,
            "thresholds": settings.score_thresholds(len(names)) if settings else [None] * len(names),
            "presence": settings.presence_threshold if settings and settings.preset == "open" else None,
            "upperBounds": settings is not None and settings.skip_absent,
        }


def merge_classes(runs: Sequence[Labels]) -> tuple[list[str], list[list[int]]]:
    """The names of all classes, and for every run and class its position among them."""
    names = list(dict.fromkeys(name for labels in runs for name in labels.class_names))
    places = {name: place for place, name in enumerate(names)}
    return names, [[places[name] for name in labels.class_names] for labels in runs]


def make_sample(rows: Sequence[Row], image: Image.Image, longer_side_px: int) -> dict[str, Any]:
    """Reduce an image and its masks, for the page and its script.

    Args:
        rows: the image's row in every run, with annotations.
        image: RGB; it is reduced in place.
        longer_side_px: longer side of the copy. Smaller images keep their size.

    Returns:
        A sample image:

        * ``image_id`` as in the row, and ``original``, width and height of the image in pixels;
        * ``address``, a ``data:`` URL of the copy, and its ``width`` and ``height`` in pixels;
        * ``sides``: see `labels_of`, one for each row.
    """
    image.thumbnail((longer_side_px, longer_side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return {
        "image_id": rows[0]["image_id"],
        "address": f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
        "width": image.width,
        "height": image.height,
        "original": (rows[0]["width"], rows[0]["height"]),
        "sides": [labels_of(row, image.size) for row in rows],
    }


def labels_of(row: Row, size: tuple[int, int]) -> dict[str, Any]:
    """What a run says of an image.

    Args:
        row: the image's row.
        size: width and height of the copy.

    Returns:
        Labels, in which classes are positions in the run's vocabulary, from 0:

        * ``scores`` and ``probabilities`` of all classes, to six decimals; no probabilities are None;
        * ``found``: class and share of the area for every mask, highest score first;
        * ``lost_to``: for some of the other classes the background word that each lost to;
        * ``overlay``: label map in the copy's size, one byte per pixel, zlib, base64. 0 is background, n is the n-th
          entry of ``overlay_classes``.
    """
    area = row["width"] * row["height"]
    by_score = sorted(row["annotations"], key=lambda entry: -entry["score"])
    overlay, overlay_classes = overlay_of(row, size)
    return {
        "scores": to_six_decimals(row["class_scores"]),
        "probabilities": to_six_decimals(row["class_probabilities"])
        if row["class_probabilities"] is not None
        else None,
        "found": [(entry["category_id"] - 1, entry["area"] / area) for entry in by_score],
        "lost_to": {entry["category_id"] - 1: entry["background"] for entry in row["lost_to"] or ()},
        "overlay": overlay,
        "overlay_classes": overlay_classes,
    }


def to_six_decimals(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]


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
    runs: Sequence[Run], samples: Sequence[dict[str, Any]], unreadable: Sequence[Unreadable], in_both: int
) -> str:
    """The page as HTML. Text from rows and manifests is escaped.

    Args:
        runs: one, or two to compare.
        samples: made by `make_sample`, with a side for each run; of two runs they have a ``difference`` too, the share
            of pixels whose class differs.
        unreadable: images that cannot be shown.
        in_both: number of images that both of two runs have.
    """
    environment = Environment(
        loader=PackageLoader("jobs.page"), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"thousands": "{:,}".format, "percent": percent}
    names, numbers = merge_classes([run.labels for run in runs])
    shown = [
        {numbers[side][index] for side, labels in enumerate(sample["sides"]) for index in labels["overlay_classes"]}
        for sample in samples
    ]
    images = np.zeros((len(names), len(runs)), np.int64)
    for side, run in enumerate(runs):
        images[numbers[side], side] = run.counts.images_by_class
    facts_of_classes = zip(names, page_colours(len(names), map(sorted, shown)), images.tolist(), strict=True)
    classes = [
        {"index": index, "name": name, "colour": colour, "images": images}
        for index, (name, colour, images) in enumerate(facts_of_classes)
    ]
    titles = run_names([run.labels.location.url for run in runs])
    data = {
        "classes": [{"name": entry["name"], "colour": entry["colour"]} for entry in classes],
        "runs": [run.facts(own) for run, own in zip(runs, numbers, strict=True)],
        "histograms": runs[0].counts.histograms.transpose(1, 0, 2).tolist(),
        "binWidth": 1 / BINS_PER_UNIT,
        "images": [{name: fact for name, fact in image.items() if name != "address"} for image in samples],
        "marksOf": f"{runs[0].labels.location.url} {runs[0].labels.manifest.get('fingerprint')}",
    }
    described = [
        {"name": name, "labels": run.labels, "counts": run.counts, "failures": failures_of(run.counts),
         "facts": facts(run.labels.manifest, run.summary)}
        for name, run in zip(titles, runs, strict=True)
    ]  # fmt: skip
    cards = [card_of(sample, [run.labels.class_names for run in runs]) for sample in samples]
    return environment.get_template("report.html.j2").render(
        runs=described, data=data, classes=classes, samples=cards, unreadable=unreadable, in_both=in_both,
        by_images=sorted(classes, key=lambda entry: -max(entry["images"])),
    )  # fmt: skip


def card_of(sample: dict[str, Any], class_names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A sample with what the page says of it without the script: a short name, and a text for each side."""
    name = sample["image_id"].rpartition("/")[2] or sample["image_id"]
    found = [
        ", ".join(names[index] for index, _ in side["found"]) or "only background"
        for side, names in zip(sample["sides"], class_names, strict=True)
    ]
    return sample | {"name": name, "alts": [f"{name}: {classes}" for classes in found]}


def run_names(urls: Sequence[str]) -> list[str]:
    """What the page calls the runs: the names of their folders, or the addresses if these are the same."""
    names = [url.rstrip("/").rpartition("/")[2] or url for url in urls]
    return names if len(set(names)) == len(names) else list(urls)


def failures_of(counts: Counts) -> list[dict[str, Any]]:
    """Kinds of failures, most frequent first."""
    return [
        {"status": status, "images": images, "example": counts.example_errors[status]}
        for status, images in counts.by_status.most_common()
        if status in counts.example_errors
    ]


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
