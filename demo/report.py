"""A page about labelled pictures: figures, legend, and a gallery to look through. One file, no network."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from demo.corpus import JPEG_QUALITY
from demo.metrics import Figures
from demo.world.names import NAMES
from demo.world.scene import Picture

LEGEND = {
    "sky": "#8ecae6", "mountain": "#8d7b9d", "sea": "#1d6fa5", "grass": "#6ab04c", "sand": "#e9c46a", "snow": "#e8f1f8",
    "road": "#5c5f66", "brick wall": "#a4442c", "sun": "#ffd60a", "moon": "#f4e9c1", "cloud": "#c9d6df",
    "tree": "#1b5e20", "house": "#d1495b", "car": "#3a0ca3", "boat": "#7f4f24", "fish": "#ff7f50", "flower": "#f72585",
    "balloon": "#9d4edd", "umbrella": "#00b4a6", "fence": "#bc8a5f", "tent": "#f3722c", "cactus": "#90be6d",
    "snowman": "#4cc9f0",
}  # fmt: skip
"""A colour for every name."""
SCORES_SHOWN = 6


@dataclass(frozen=True)
class Example:
    """A labelled picture.

    Attributes:
        seed: of the picture.
        picture: as drawn.
        labels: as predicted [height, width].
        scores: class scores as predicted, in the order of the names.
    """

    seed: int
    picture: Picture
    labels: np.ndarray
    scores: list[float]

    @property
    def best(self) -> list[tuple[str, float, bool]]:
        """The highest scores: name, score, and whether the name is really there."""
        order = np.argsort(self.scores)[::-1][:SCORES_SHOWN].tolist()
        return [(NAMES[index], self.scores[index], index + 1 in self.picture.categories) for index in order]

    @property
    def accuracy(self) -> float:
        """Share of pixels with the right name."""
        return float((self.labels == self.picture.labels).mean())


def write_report(page: Path, figures: Figures, iou: list[float | None], examples: list[Example]) -> None:
    """Write the page.

    Args:
        page: HTML file.
        figures: over all pictures.
        iou: of every name, over all pictures.
        examples: for the gallery.
    """
    environment = Environment(loader=PackageLoader("demo"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"jpeg": jpeg_address, "overlay": overlay_address}
    document = environment.get_template("report.html.j2").render(
        figures=figures, iou=dict(zip(NAMES, iou, strict=True)), legend=LEGEND, examples=examples
    )
    page.write_text(document, encoding="utf-8")


def jpeg_address(image: np.ndarray) -> str:
    """A picture as an address that holds its bytes."""
    return image_address(Image.fromarray(image), "JPEG", quality=JPEG_QUALITY)


def overlay_address(labels: np.ndarray) -> str:
    """A label map in the legend's colours, background transparent."""
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    colours = [(0, 0, 0), *(tuple(bytes.fromhex(LEGEND[name][1:])) for name in NAMES)]
    image.putpalette([channel for colour in colours for channel in colour])
    return image_address(image, "PNG", transparency=0, optimize=True)


def image_address(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
