"""Drawing rows of panels with matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jobs.figures.panels import Panel, Rows
from schemas.colours import class_colours

PANEL_WIDTH_IN = 2.4
TITLE_HEIGHT_IN = 0.3
LEGEND_COLUMNS = 6
RESOLUTION_DPI = 150


def draw(rows: Rows, class_names: Sequence[str] = ()) -> Figure:
    """A figure of panels, each as wide and high as the image at the start of its row.

    Label maps get a legend of the classes that occur in them.
    """
    columns = max(map(len, rows))
    heights = [PANEL_WIDTH_IN * row[0].pixels.shape[0] / row[0].pixels.shape[1] for row in rows]
    found = [np.unique(panel.pixels) for row in rows for panel in row if panel.is_labels]
    shown = sorted(set(np.concatenate(found).tolist()) - {0}) if found else []
    legend_in = 0.25 * (1 + -(-len(shown) // LEGEND_COLUMNS)) if shown else 0.0
    size_in = (PANEL_WIDTH_IN * columns, sum(heights) + len(rows) * TITLE_HEIGHT_IN + legend_in)
    figure = Figure(figsize=size_in, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    colours = np.zeros((1 + len(class_names), 3))
    for label, colour in zip(shown, class_colours(len(shown)), strict=True):
        colours[label] = to_rgb(colour)
    for axes_of_row, row, height in zip(grid, rows, heights, strict=True):
        for axes in axes_of_row[len(row) :]:
            axes.axis("off")
        for axes, panel in zip(axes_of_row, row, strict=False):
            draw_panel(axes, panel, colours, height / PANEL_WIDTH_IN)
    if shown:
        handles = [Patch(color=colours[label], label=plain(class_names[label - 1])) for label in shown]
        figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False)
    return figure


def draw_panel(axes: Axes, panel: Panel, colours: np.ndarray, height_by_width: float) -> None:
    pixels = colours[panel.pixels] if panel.is_labels else panel.pixels
    axes.imshow(pixels, extent=(0, 1, 1, 0), aspect=height_by_width, interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=plain(panel.title))
    axes.spines[:].set(color="grey", linewidth=0.5)
    for point in panel.points:
        axes.plot(point.x, point.y, marker="+", color="white", markersize=14, markeredgewidth=4)
        axes.plot(point.x, point.y, marker="+", color="red", markersize=12, markeredgewidth=2)


def plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG or SVG file, by the name's ending."""
    figure.savefig(path, dpi=RESOLUTION_DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
