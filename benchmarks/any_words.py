"""Quality on vocabularies that nobody tuned for: words drawn at random from the classes of a labelled folder.

A vocabulary has 1, 2, 5, 20 or 80 of the classes. The other classes are available as background words. Preset ``open``
gets all that do not mean the same as a word of the vocabulary. Preset ``release`` gets those that are among its own
background words. Everything else has its default. Classes are drawn from those that cover 0.2 % of at least
``--in-images`` images, and for larger vocabularies from all that occur.

Run it from the repository root: ``python -m benchmarks.any_words --images DIR --masks DIR --classes FILE``. In index
masks 0 and 255 do not count, and c is the c-th class.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.labelled_folder import (
    LEAST_SHARE,
    PRESETS,
    Draw,
    FolderOptions,
    class_shares,
    decision_figures,
    label_image,
    prepared_rows,
    specification,
    with_background,
)
from cliper.pipeline import Cliper
from cliper.settings import Preset
from cliper.specs import CliperSpec, best_device, build_queries
from cluster.encoders import truth_of
from jobs.common.statistics import (
    best_thresholds,
    calibration_error,
    intersection_over_union,
    mean_average_precision,
    threshold_figures,
)
from jobs.evaluation.datasets import Dataset

LARGE_SHARE = 0.01
"""Share of an image's pixels from which a class is large in it."""


@dataclass(frozen=True, kw_only=True)
class AnyWordsOptions(FolderOptions):
    """What to measure."""

    sizes: tuple[int, ...] = (1, 2, 5, 20, 80)
    """Words in a vocabulary."""
    draws: int = 20
    """Vocabularies of each size."""
    in_images: int = 4
    """Images that a class must be seen in to be drawn."""
    first_classes: int | None = None
    """Draw only from so many first classes of the list, such as the 80 things of COCO."""


def main(options: AnyWordsOptions) -> None:
    """Measure, print the table, and write figures."""
    console = Console()
    dataset = options.dataset()
    specs = {preset: specification(options, dataset, preset) for preset in PRESETS}
    rows = list(
        track(prepared_rows(dataset, specs["open"]), "reading", len(dataset.labelled.corpus.shards), console=console)
    )
    shares = np.stack([class_shares(truth_of(row), len(dataset.classes)) for row in rows])
    draws = draw_vocabularies(options, dataset, specs, shares)
    for row in track(rows, "labelling", console=console):
        label_image(row, specs["open"].inputs, draws)
    by_case = defaultdict(list)
    for draw in draws:
        by_case[draw.preset, len(draw.words)].append(draw)
    results = [figures(by_case[case], shares) for case in sorted(by_case, key=lambda case: PRESETS.index(case[0]))]
    show(results, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.figure:
        plot(results, options.figure)


def draw_vocabularies(
    options: AnyWordsOptions, dataset: Dataset, specs: dict[Preset, CliperSpec], shares: np.ndarray
) -> list[Draw]:
    """The vocabularies of all sizes, the same ones for every preset. Sizes above the number of classes are left out."""
    shares = shares[:, : options.first_classes]
    frequent = np.flatnonzero((shares > LEAST_SHARE).sum(axis=0) >= options.in_images)
    occurring = np.flatnonzero(shares.any(axis=0))
    device = best_device()
    built = {preset: spec.build(device) for preset, spec in specs.items()}
    draws = []
    for size in options.sizes:
        pool = frequent if size <= len(frequent) else occurring
        if size > len(pool):
            continue
        rng = np.random.default_rng([options.seed, size])
        for words in (np.sort(rng.choice(pool, size, replace=False)) for _ in range(options.draws)):
            names = [dataset.class_names[word] for word in words]
            for preset, spec in specs.items():
                queries = build_queries(with_background(spec.embeddings, names, preset), preset)
                method = Cliper(built[preset].tower, queries, spec.settings, built[preset].affinity)
                draws.append(Draw(preset, words, method))
    return draws


def figures(draws: Sequence[Draw], shares: np.ndarray) -> dict[str, Any]:
    """Figures of the draws of one size, in percent. Decisions of all draws are counted together."""
    share = [shares[:, draw.words] for draw in draws]
    scores, found = [np.stack(draw.scores) for draw in draws], [np.stack(draw.found) for draw in draws]
    f1s = [decision_figures(*decisions)[2] for decisions in zip(found, share, strict=True)]
    mious = [np.nanmean(intersection_over_union(*draw.pixels)) for draw in draws]
    maps = [mean_average_precision(of, own > 0) for of, own in zip(scores, share, strict=True)]
    all_scores, all_found, all_shares = (
        np.concatenate([of.ravel() for of in column]) for column in (scores, found, share)
    )
    present = all_shares > 0
    precision, recall, f1 = decision_figures(all_found, all_shares)
    best = best_thresholds(all_scores, present)[:1]
    result = {
        "f1": f1, "f1_spread": np.nanstd(f1s), "best_f1": threshold_figures(all_scores, present, best)[2, 0],
        "precision": precision, "recall": recall, "recall_large": all_found[all_shares > LARGE_SHARE].mean(),
        "map": np.mean(maps), "miou": np.mean(mious), "miou_spread": np.std(mious),
    }  # fmt: skip
    percent: dict[str, Any] = {name: round(100 * float(value), 1) for name, value in result.items()}
    probabilities = draws[0].cliper.settings.probabilities(all_scores)
    if probabilities is not None:
        percent["calibration_error"] = round(calibration_error(probabilities, present), 4)
        percent["reliability"] = reliability(probabilities, present)
    return {"preset": draws[0].preset, "words": len(draws[0].words), "draws": len(draws), **percent}


def reliability(probabilities: np.ndarray, present: np.ndarray) -> list[tuple[float, float, int]]:
    """For ten bins of probability: mean probability, frequency of presence, and number of decisions."""
    of_bin = np.minimum((probabilities * 10).astype(int), 9)
    bins = (of_bin == number for number in range(10))
    return [(float(probabilities[own].mean()), float(present[own].mean()), int(own.sum())) for own in bins if own.any()]


COLUMNS = {
    "words": "words", "preset": "preset", "f1": "F1", "f1_spread": "±", "best_f1": "best F1", "precision": "precision",
    "recall": "recall", "recall_large": "recall > 1 %", "map": "mAP", "miou": "mIoU", "miou_spread": "±",
    "calibration_error": "calibration error",
}  # fmt: skip


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the figures; ± is the standard deviation over draws."""
    table = Table(*COLUMNS.values())
    for result in sorted(results, key=lambda result: result["words"]):
        table.add_row(*(str(result.get(name, "")) for name in COLUMNS))
    console.print(table)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """F1 and mean IoU by size of the vocabulary, and the reliability of the probabilities."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for preset, colour in zip(PRESETS, ("tab:gray", "tab:blue"), strict=True):
        own = [result for result in results if result["preset"] == preset]
        words = [str(result["words"]) for result in own]
        for axis, name, title in zip(axes, ("f1", "miou"), ("F1 of presence, %", "mean IoU, %"), strict=False):
            axis.errorbar(
                words, [result[name] for result in own], [result[f"{name}_spread"] for result in own],
                color=colour, label=preset, marker="o", capsize=3,
            )  # fmt: skip
            axis.set(title=title, xlabel="words in the vocabulary", ylim=(0, 100))
    axes[0].legend(title="preset")
    axes[2].plot([0, 1], [0, 1], color="tab:gray", linewidth=1)
    for result in results:
        if "reliability" in result:
            points = [(said, true) for said, true, count in result["reliability"] if count > 10]
            axes[2].plot(*zip(*points, strict=True), marker=".", label=f"{result['words']} words")
    axes[2].set(title="share of images that show the class", xlabel="probability of presence", xlim=(0, 1), ylim=(0, 1))
    axes[2].legend()
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(AnyWordsOptions, description=__doc__))
