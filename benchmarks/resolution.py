"""Quality and time by size of CLIP's input, windows, scales and mirroring; of small, medium and large objects.

The vocabulary has all classes that the images of a labelled folder show. IoU is given for all
pixels of each class, averaged over classes, and by size of objects: the mean over pairs of an image and a class in it,
where the pair is as large as the largest connected region of the class there. Sizes are COCO's: small below 32 x 32
pixels of the image, large above 96 x 96. All figures are there twice. Either scores decide which classes an image
shows, or that is given (as ``--allowed-column`` gives it), so that only outlines count.

Run it from the repository root: ``python -m benchmarks.resolution --images DIR --masks DIR --classes FILE``. In index
masks 0 and 255 do not count, and c is the c-th class.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import ndimage

from benchmarks.labelled_folder import (
    Draw,
    FolderOptions,
    class_shares,
    prepared_rows,
    specification,
    with_background,
)
from cliper.pipeline import Cliper, Features
from cliper.settings import Preset
from cliper.specs import CliperSpec, best_device, build_queries
from cluster.corpus.prepare import PREPARED_SCHEMA, read_prepared
from cluster.encoders import truth_of
from jobs.common.statistics import intersection_over_union

CASES: Mapping[str, Mapping[str, Any]] = {
    "336": {"shorter_side_px": 336},
    "336, flip": {"shorter_side_px": 336, "flip": True},
    "448": {"shorter_side_px": 448},
    "448, average": {"shorter_side_px": 448, "windows": "average"},
    "336 + 448": {"shorter_side_px": 336, "scales": (1.0, 4 / 3)},
    "560": {"shorter_side_px": 560},
    "336 + 560": {"shorter_side_px": 336, "scales": (1.0, 5 / 3)},
    "672": {"shorter_side_px": 672},
    "336 + 672": {"shorter_side_px": 336, "scales": (1.0, 2.0)},
    "672, stitched": {"shorter_side_px": 672, "windows": "stitched"},
    "336 + 672, stitched": {"shorter_side_px": 336, "scales": (1.0, 2.0), "windows": "stitched"},
}
"""By name, what differs from the defaults."""
SIZES = ("small", "medium", "large")
SIZE_BOUNDS = (32**2, 96**2)
"""COCO's, in pixels of the image."""
RESAMPLES = 1000
HOW = ("decided", "given")
"""How it is known which classes an image shows."""


@dataclass(frozen=True, kw_only=True)
class ResolutionOptions(FolderOptions):
    """What to measure."""

    preset: Preset = "open"
    """Preset."""
    cases: tuple[str, ...] = tuple(CASES)
    """What is measured; 336 always is."""
    timed: int = 2
    """Images for which every case is timed from beginning to end, at least one."""


@dataclass
class Case:
    """The method with some settings.

    Attributes:
        spec: the models and settings.
        decided, given: the labels, if scores decide which classes an image shows, and if that is given.
        seconds: for each image that was timed.
    """

    spec: CliperSpec
    decided: Draw
    given: Draw
    seconds: list[float] = field(default_factory=list)

    @property
    def views(self) -> list[tuple[int, int, bool, bool]]:
        """What CLIP sees: side of the pixels, side of the view, if it is mirrored, and if windows are stitched."""
        settings = self.spec.settings
        sides, mirrored = settings.sides_px, (False, True)[: 1 + settings.flip]
        return [(sides[0], side, flip, settings.windows == "stitched") for side in sides for flip in mirrored]

    def begins(self, other: "Case") -> bool:
        """True if the other case looks at the same and more. What it sees can be used here too."""
        return len(self.views) < len(other.views) and other.views[: len(self.views)] == self.views


def main(options: ResolutionOptions) -> None:
    """Measure, print the table, and write figures."""
    console = Console()
    dataset = options.dataset()
    spec = specification(options, dataset, options.preset)
    truths = [truth_of(row) for row in prepared_rows(dataset, spec)]
    shares = np.stack([class_shares(truth, len(dataset.classes)) for truth in truths])
    words = np.flatnonzero(shares.any(axis=0))
    sizes = np.stack([object_sizes(truth, words) for truth in truths])
    console.print(f"{len(words)} classes; pairs of image and class: {counted(sizes)}", soft_wrap=True)
    cases = build_cases(spec, words, [dataset.class_names[word] for word in words], options.cases)
    looks = [case for case in cases.values() if not any(map(case.begins, cases.values()))]
    rows = zip(*(prepared_rows(dataset, look.spec) for look in looks), strict=True)
    for number, of_looks in enumerate(track(rows, "labelling", len(truths), console=console)):
        for look, row in zip(looks, of_looks, strict=True):
            of_look = [case for case in cases.values() if case.views == look.views or case.begins(look)]
            label(row, look, of_look, number < options.timed)
        if options.json:
            results = [figures(name, how, cases, sizes, options.seed) for how in HOW for name in cases]
            options.json.write_text(json.dumps(results, indent=1))
    show(results, console)
    if options.figure:
        plot(results, options.figure)


def build_cases(spec: CliperSpec, words: np.ndarray, names: Sequence[str], chosen: Sequence[str]) -> dict[str, Case]:
    """Cases with one vocabulary and one image tower."""
    preset = spec.settings.preset
    queries = build_queries(with_background(spec.embeddings, names, preset), preset)
    built = spec.build(best_device())
    cases = {}
    for name in dict.fromkeys(("336", *chosen)):
        settings = replace(spec.settings, **CASES[name])
        cliper = Cliper(built.tower, queries, settings, built.affinity)
        decided, given = (Draw(preset, words, cliper) for _ in HOW)
        cases[name] = Case(replace(spec, settings=settings, inputs=cliper.inputs), decided, given)
    return cases


def label(row: dict[str, Any], look: Case, cases: Sequence[Case], timed: bool) -> None:
    """Label an image in the cases that need no more views than ``look``. To be timed, each starts again."""
    prepared = read_prepared(pa.Table.from_pylist([row], schema=PREPARED_SCHEMA), look.spec.inputs)
    features, truth = look.decided.cliper.features(prepared), truth_of(row)
    shown = np.flatnonzero(np.isin(look.decided.words + 1, truth)).tolist()
    for case in cases:
        cliper = case.decided.cliper
        clip = [(members, views[: len(case.views)]) for members, views in features.clip]
        maps = cliper.maps_of(Features(clip, features.affinity), prepared)
        case.decided.add(cliper.read_out(maps, prepared)[0], truth)
        case.given.add(cliper.read_out(maps, prepared, [shown])[0], truth)
        if timed:
            start = time.perf_counter()
            cliper.predict(prepared)
            case.seconds.append(time.perf_counter() - start)


def object_sizes(truth: np.ndarray, words: np.ndarray) -> np.ndarray:
    """For each word the place in `SIZES` of its largest connected region in an image; -1 if there is none."""
    sizes = np.full(len(words), -1)
    for place, word in enumerate(words):
        regions, count = ndimage.label(truth == word + 1)
        if count:
            sizes[place] = np.searchsorted(SIZE_BOUNDS, np.bincount(regions.ravel())[1:].max(), side="right")
    return sizes


def counted(sizes: np.ndarray) -> str:
    return ", ".join(f"{(sizes == place).sum()} {name}" for place, name in enumerate(SIZES))


def figures(name: str, how: str, cases: Mapping[str, Case], sizes: np.ndarray, seed: int) -> dict[str, Any]:
    """Figures of a case in percent, and differences to the first case. Their spread is the standard deviation over
    images drawn with replacement."""
    counts, before = (np.stack(getattr(case, how).counts) for case in (cases[name], cases["336"]))
    rng, images, sizes = np.random.default_rng(seed), len(counts), sizes[: len(counts)]
    drawn = [rng.integers(images, size=images) for _ in range(RESAMPLES)]
    result: dict[str, Any] = {"case": name, "classes": how}
    for place, measure in enumerate(("miou", *SIZES), start=-1):
        value, reference = (mean_iou(of, sizes, place) for of in (counts, before))
        gains = [
            mean_iou(counts[some], sizes[some], place) - mean_iou(before[some], sizes[some], place) for some in drawn
        ]
        result |= {measure: value, f"{measure}_gain": value - reference, f"{measure}_spread": np.std(gains)}
    rounded = {key: value if isinstance(value, str) else round(100 * float(value), 1) for key, value in result.items()}
    return rounded | {"images": images, "ms": round(1000 * float(np.median(cases[name].seconds)))}


def mean_iou(counts: np.ndarray, sizes: np.ndarray, place: int) -> float:
    """Over pairs of image and class of one size; with ``place`` -1 over classes, each with the pixels of all images."""
    if place < 0:
        found = intersection_over_union(*counts.sum(axis=0))
    else:
        found = intersection_over_union(*counts.transpose(1, 0, 2))[sizes == place]
    counted = found[~np.isnan(found)]
    return float(counted.mean()) if len(counted) else np.nan


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the figures; ± is the standard deviation over photographs drawn again."""
    table = Table("classes", "input", "mIoU, gain", *(f"{size}, gain" for size in SIZES), "ms per image")
    for result in results:
        cells = [f"{result[of]} {result[f'{of}_gain']:+.1f} ± {result[f'{of}_spread']}" for of in ("miou", *SIZES)]
        table.add_row(result["classes"], result["case"], *cells, f"{result['ms']:,}")
    console.print(table)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Gains over the first case by size of objects, and time."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 5, figsize=(13, 4.2), layout="constrained", sharey=True)
    names = list(dict.fromkeys(result["case"] for result in results))
    places = np.arange(len(names))
    for how, colour, shift in zip(HOW, ("tab:blue", "tab:green"), (-0.2, 0.2), strict=True):
        own = [result for result in results if result["classes"] == how]
        for axis, measure in zip(axes, ("miou", *SIZES), strict=False):
            gains, spreads = ([result[f"{measure}_{what}"] for result in own] for what in ("gain", "spread"))
            axis.barh(
                places + shift, gains, 0.4, xerr=spreads, color=colour, label=f"classes {how}",
                error_kw={"elinewidth": 1, "ecolor": "tab:gray"},
            )  # fmt: skip
    for axis, title in zip(axes, ("mean IoU", *(f"IoU, {size}" for size in SIZES)), strict=False):
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=f"{title}: gain", xlabel="percentage points")
    axes[0].set(yticks=places, yticklabels=names)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize="small")
    times = [result["ms"] / results[0]["ms"] for result in results[: len(names)]]
    axes[4].barh(places, times, color="tab:orange")
    axes[4].set(title="time per image", xlabel=f"times that of {names[0]}")
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(ResolutionOptions, description=__doc__))
