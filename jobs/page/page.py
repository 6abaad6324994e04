"""The page about labelled pictures: charts, and a gallery with overlays. One file that needs no network."""

import base64
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cluster.output.rows import Labels
from jobs.page.counts import BIN_WIDTH, Tally
from jobs.page.images import Row, Unreadable
from schemas.runs import labels_from_annotations

WEBP_QUALITY = 80
MOST_CLASSES_IN_A_PICTURE = 255
"""In the overlay; of more, the smallest are left out."""
NEAR_MISSES = 5
"""Classes that were not found whose scores are shown all the same, highest first."""
GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True)
class Thumbnail:
    """A picture of the gallery.

    Attributes:
        image_id: of its row.
        address: a ``data:`` URL of the reduced picture.
        width, height: of the reduced picture, in pixels.
        original: width and height of the picture itself.
        found: per class found its index from 0, score and share of the area; highest score first.
        near_misses: classes not found, likewise, without a share.
        overlay: label map in the reduced size, one byte per pixel, zlib, base64; 0 is background, n the n-th of
            ``overlay_classes``.
        overlay_classes: class indices.
    """

    image_id: str
    address: str
    width: int
    height: int
    original: tuple[int, int]
    found: list[tuple[int, float, float]]
    near_misses: list[tuple[int, float, None]]
    overlay: str
    overlay_classes: list[int]

    @property
    def name(self) -> str:
        """The last part of the id."""
        return self.image_id.rpartition("/")[2] or self.image_id

    def data(self) -> dict[str, Any]:
        """What the page's script needs."""
        return {
            "id": self.image_id, "name": self.name, "width": self.width, "height": self.height,
            "original": self.original, "found": self.found, "nearMisses": self.near_misses,
            "overlay": self.overlay, "overlayClasses": self.overlay_classes,
        }  # fmt: skip


def make_thumbnail(row: Row, pixels: np.ndarray, longer_side_px: int) -> Thumbnail:
    """Reduce a picture and its masks.

    Args:
        row: with its annotations.
        pixels: uint8 [height, width, 3].
        longer_side_px: of the thumbnail; smaller pictures keep their size.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((longer_side_px, longer_side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    address = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    area = row["width"] * row["height"]
    found = [(entry["category_id"] - 1, entry["score"], entry["area"] / area) for entry in row["annotations"]]
    present = {index for index, _, _ in found}
    others = [index for index in np.argsort(row["class_scores"])[::-1].tolist() if index not in present]
    overlay, overlay_classes = overlay_of(row, image.size)
    return Thumbnail(
        row["image_id"], address, image.width, image.height, (row["width"], row["height"]),
        sorted(found, key=lambda entry: -entry[1]),
        [(index, row["class_scores"][index], None) for index in others[:NEAR_MISSES]],
        overlay, overlay_classes,
    )  # fmt: skip


def overlay_of(row: Row, size: tuple[int, int]) -> tuple[str, list[int]]:
    """A row's label map, reduced to a width and height, and the indices of the classes in it."""
    largest = sorted(row["annotations"], key=lambda entry: -entry["area"])[:MOST_CLASSES_IN_A_PICTURE]
    labels = labels_from_annotations(largest, row["height"], row["width"])
    categories = np.array([0, *(entry["category_id"] for entry in largest)])
    order = np.argsort(categories)
    positions = order[np.searchsorted(categories[order], labels)].astype(np.uint8)
    reduced = Image.fromarray(positions).resize(size, Image.Resampling.NEAREST)
    packed = zlib.compress(reduced.tobytes(), level=9)
    return base64.b64encode(packed).decode("ascii"), (categories[1:] - 1).tolist()


def class_colours(count: int) -> list[str]:
    """A colour for every class of a vocabulary, as ``#rrggbb``; it depends on the class's position alone.

    Hues are a golden angle apart, so that neighbours differ, in three lightnesses of the colour space Oklab.
    """
    index = np.arange(count)
    hue, lightness = 0.5 + index * GOLDEN_ANGLE, np.array([0.70, 0.58, 0.80])[index % 3]
    a, b = 0.15 * np.cos(hue), 0.15 * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.clip(np.stack([
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    ], axis=1), 0, 1)  # fmt: skip
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in np.round(255 * srgb).astype(int).tolist()]


def render_page(
    labels: Labels,
    summary: dict[str, Any],
    tally: Tally,
    thumbnails: Sequence[Thumbnail],
    unreadable: Sequence[Unreadable],
) -> str:
    """The page as HTML; no text of rows or manifest can become markup in it.

    Args:
        labels: whose manifest says how they came about.
        summary: of the job; empty if there is none.
        tally: of all rows.
        thumbnails: for the gallery.
        unreadable: pictures that were chosen for it but cannot be shown.
    """
    environment = Environment(
        loader=PackageLoader("jobs.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"thousands": "{:,}".format, "percent": percent}
    colours = class_colours(len(labels.class_names))
    classes = [
        {"index": index, "name": name, "colour": colour, "images": images}
        for index, (name, colour, images) in enumerate(
            zip(labels.class_names, colours, tally.images_by_class.tolist(), strict=True)
        )
    ]
    data = {
        "classes": [{"name": entry["name"], "colour": entry["colour"]} for entry in classes],
        "thresholds": thresholds(labels),
        "histograms": tally.histograms.transpose(1, 0, 2).tolist(),
        "binWidth": BIN_WIDTH,
        "pictures": [thumbnail.data() for thumbnail in thumbnails],
    }
    return environment.get_template("report.html.j2").render(
        labels=labels, tally=tally, facts=facts(labels.manifest, summary), data=data, classes=classes,
        by_images=sorted(classes, key=lambda entry: -entry["images"]), failures=failures(tally),
        in_gallery=sorted({index for thumbnail in thumbnails for index, _, _ in thumbnail.found}),
        thumbnails=thumbnails, unreadable=unreadable,
    )  # fmt: skip


def percent(share: float) -> str:
    """``0.1234`` as ``12.3 %``; what is not nothing never looks like nothing."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def failures(tally: Tally) -> list[dict[str, Any]]:
    """Kinds of failures, most frequent first, with an example each."""
    return [
        {"status": status, "images": images, "example": tally.example_errors[status]}
        for status, images in tally.by_status.most_common()
        if status in tally.example_errors
    ]


def thresholds(labels: Labels) -> list[float | None]:
    """For every class the score above which it was taken to be there; None if the manifest does not say."""
    settings = labels.manifest.get("settings", {})
    own = settings.get("class_score_thresholds") or []
    count = len(labels.class_names)
    return own if len(own) == count else [settings.get("score_threshold")] * count


def facts(manifest: dict[str, Any], summary: dict[str, Any]) -> dict[str, dict[str, str]]:
    """How the labels came about, under headings."""
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
