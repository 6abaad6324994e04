"""Quality with labelled examples beside words alone, and of classes that only examples show, over draws of examples.

Every other image of a labelled folder, from the first on, is a possible example. All figures are of the others. The
vocabulary has the classes that cover 0.2 % of at least five possible examples and of at least two other images; the
other classes are available as background words, as in `benchmarks.any_words`. A draw takes 1, 2 or 5 images for every
class at random, and of each image the masks of the classes that it was drawn for. In every draw of ``--alone`` images,
some classes, one after the other, have no words; over all draws each class is one of them once.

Run it from the repository root: ``python -m benchmarks.examples --images DIR --masks DIR --classes FILE``. In index
masks 0 and 255 do not count, and c is the c-th class.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from cliper.examples import patch_shares
from cliper.pipeline import Cliper
from cliper.settings import Preset
from cliper.specs import CliperSpec, best_device, build_queries
from cliper.visual import late_features, queries_from
from cliper.vocabulary import with_wordless
from cluster.encoders import truth_of
from jobs.common.statistics import intersection_over_union
from jobs.evaluation.datasets import Dataset
from schemas.embeddings import VocabularyEmbeddings
from schemas.vocabulary import VocabularyClass

Seen = tuple[torch.Tensor, np.ndarray]
"""Features of an image's patches and the shares of all classes of the data set in them."""


@dataclass(frozen=True, kw_only=True)
class ExamplesOptions(FolderOptions):
    """What to measure."""

    counts: tuple[int, ...] = (1, 2, 5)
    """Examples of each class."""
    draws: int = 10
    """Draws of examples for each of them."""
    alone: int = 2
    """Examples of a class without words: one of the counts."""
    presets: tuple[Preset, ...] = ("open", "release")
    """Presets to measure. Classes without words are tried with preset open."""


@dataclass
class Trial:
    """A vocabulary with examples, or without.

    Attributes:
        count: examples of each class; 0 for words alone.
        alone: the word (from 0) that only examples show; None if all classes have words.
        found: the labels.
    """

    count: int
    alone: int | None
    found: Draw

    @property
    def iou(self) -> np.ndarray:
        """Of every class, in percent."""
        return 100 * intersection_over_union(*self.found.pixels)


def main(options: ExamplesOptions) -> None:
    """Measure, print the tables, and write figures."""
    console = Console()
    dataset = options.dataset()
    presets: tuple[Preset, ...] = ("open", *options.presets)
    specs = {preset: specification(options, dataset, preset) for preset in dict.fromkeys(presets)}
    pool, measured = dataset.part(0, 2), dataset.part(1, 2)
    seen, pool_shares = look(pool, specs["open"], console)
    rows = list(prepared_rows(measured, specs["open"]))
    shares = np.stack([class_shares(truth_of(row), len(dataset.classes)) for row in rows])
    words = np.flatnonzero(
        ((pool_shares > LEAST_SHARE).sum(axis=0) >= max(options.counts)) & ((shares > LEAST_SHARE).sum(axis=0) >= 2)
    )
    console.print(f"{len(words)} classes: {', '.join(dataset.class_names[word] for word in words)}", soft_wrap=True)
    trials = draw_trials(options, dataset, specs, words, seen, pool_shares)
    for row in track(rows, "labelling", console=console):
        label_image(row, specs["open"].inputs, [trial.found for trial in trials])
    results = figures(trials, shares, [dataset.class_names[word] for word in words])
    show(results, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.figure:
        plot(results, options.figure)


def look(pool: Dataset, spec: CliperSpec, console: Console) -> tuple[list[Seen], np.ndarray]:
    """What the image tower sees in possible examples, and the share of each image that each class covers."""
    tower = spec.build(best_device()).tower
    seen, shares = [], []
    for row in track(list(prepared_rows(pool, spec)), "looking", console=console):
        truth = truth_of(row)
        clip_hw = spec.inputs.clip_hw(truth.shape)
        clip = np.frombuffer(row["clip"], np.uint8).reshape(*clip_hw, 3)
        grid_hw = (clip_hw[0] // tower.patch_size_px, clip_hw[1] // tower.patch_size_px)
        with torch.inference_mode():
            features = late_features(tower, clip, spec.settings)
        of_patches = [patch_shares(truth == label, grid_hw) for label in range(1, len(pool.classes) + 1)]
        seen.append((features, np.stack(of_patches)))
        shares.append(class_shares(truth, len(pool.classes)))
    return seen, np.stack(shares)


def draw_trials(
    options: ExamplesOptions,
    dataset: Dataset,
    specs: dict[Preset, CliperSpec],
    words: np.ndarray,
    seen: Sequence[Seen],
    shares: np.ndarray,
) -> list[Trial]:
    """Words alone, and all draws; the same ones for every preset."""
    names = [dataset.class_names[word] for word in words]
    device = best_device()
    built = {preset: spec.build(device) for preset, spec in specs.items()}

    def trial(preset: Preset, embeddings: VocabularyEmbeddings, count: int, alone: int | None = None) -> Trial:
        queries, own = build_queries(embeddings, preset), built[preset]
        method = Cliper(own.tower, queries, own.settings, own.affinity)
        return Trial(count, alone, Draw(preset, words, method))

    spoken = {preset: with_background(spec.embeddings, names, preset) for preset, spec in specs.items()}
    trials = [trial(preset, embeddings, 0) for preset, embeddings in spoken.items()]
    for count in options.counts:
        for number in range(options.draws):
            rng = np.random.default_rng([options.seed, count, number])
            chosen = [rng.choice(np.flatnonzero(shares[:, word] > LEAST_SHARE), count, replace=False) for word in words]
            images = np.unique(chosen)
            shown = [
                (seen[image][0], seen[image][1][words] * [[image in of_class] for of_class in chosen])
                for image in images
            ]
            with torch.inference_mode():
                visual = queries_from(shown, tuple(names))
                trials += [
                    trial(preset, replace(embeddings, visual=visual), count) for preset, embeddings in spoken.items()
                ]
                for alone in range(number, len(words), options.draws) if count == options.alone else ():
                    embeddings = silent(spoken["open"], names, alone)
                    visual = queries_from(shown, tuple(names), embeddings.wordless)
                    trials.append(trial("open", replace(embeddings, visual=visual), count, alone))
    return trials


def silent(embeddings: VocabularyEmbeddings, names: Sequence[str], alone: int) -> VocabularyEmbeddings:
    """The same vocabulary without the words of one class."""
    classes = [VocabularyClass(name, () if place == alone else (name,)) for place, name in enumerate(names)]
    others = [name for place, name in enumerate(names) if place != alone]
    return with_wordless(embeddings.select(others), classes)


def figures(trials: Sequence[Trial], shares: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Figures in percent. Differences are to words alone; their spread is over draws."""
    results: list[dict[str, Any]] = []
    plain = {trial.found.preset: trial for trial in trials if not trial.count}
    cases = dict.fromkeys((trial.found.preset, trial.count) for trial in trials if trial.count)
    for preset, count in cases:
        own = [trial for trial in trials if (trial.found.preset, trial.count, trial.alone) == (preset, count, None)]
        miou, f1 = (
            np.array([of(trial) for trial in own]) - of(plain[preset])
            for of in (lambda trial: np.nanmean(trial.iou), lambda trial: presence_f1(trial, shares))
        )
        results.append({
            "preset": preset, "examples": count, "draws": len(own),
            "miou_words": round(float(np.nanmean(plain[preset].iou)), 1), "miou_gain": round(float(miou.mean()), 1),
            "miou_spread": round(float(miou.std(ddof=1)), 1), "miou_gains": miou.round(2).tolist(),
            "f1_words": round(float(presence_f1(plain[preset], shares)), 1), "f1_gain": round(float(f1.mean()), 1),
            "f1_spread": round(float(f1.std(ddof=1)), 1),
        })  # fmt: skip
    alone = []
    for trial in trials:
        if (place := trial.alone) is None:
            continue
        both = [other.iou[place] for other in trials
                if (other.found.preset, other.count, other.alone) == ("open", trial.count, None)]  # fmt: skip
        ious = {"name": plain["open"].iou[place], "both": np.mean(both), "only": trial.iou[place]}
        rounded = {key: round(float(iou), 1) for key, iou in ious.items()}
        alone.append({"class": names[place], "examples": trial.count, **rounded})
    return {"classes": list(names), "with_words": results, "alone": alone}


def presence_f1(trial: Trial, shares: np.ndarray) -> float:
    """F1 of masks as decisions that a class is present, in percent."""
    return 100 * float(decision_figures(np.stack(trial.found.found), shares[:, trial.found.words])[2])


def show(results: dict[str, Any], console: Console) -> None:
    """Print the figures; ± is the standard deviation of the differences over draws."""
    table = Table("preset", "examples", "mIoU, words", "with examples", "F1, words", "with examples")
    for row in results["with_words"]:
        gains = [f"{row[name + '_gain']:+} ± {row[name + '_spread']}" for name in ("miou", "f1")]
        table.add_row(row["preset"], str(row["examples"]), str(row["miou_words"]), gains[0],
                      str(row["f1_words"]), gains[1])  # fmt: skip
    console.print(table)
    table = Table("class", "examples", "IoU by name", "by name and examples", "by examples alone")
    of_all = {key: np.mean([row[key] for row in results["alone"]]) for key in ("name", "both", "only")}
    for row in [*results["alone"], {"class": "mean", "examples": "", **of_all}]:
        table.add_row(row["class"], str(row["examples"]), *(f"{row[key]:.1f}" for key in of_all))
    console.print(table)


def plot(results: dict[str, Any], path: Path) -> None:
    """Gains by number of examples, every draw a point; and classes without words beside their names."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    counts = list(dict.fromkeys(row["examples"] for row in results["with_words"]))
    for preset, colour in zip(PRESETS, ("tab:gray", "tab:blue"), strict=True):
        own = [row for row in results["with_words"] if row["preset"] == preset]
        if not own:
            continue
        axes[0].plot([counts.index(row["examples"]) for row in own], [row["miou_gain"] for row in own], color=colour,
                     label=preset)  # fmt: skip
        for row in own:
            gains = row["miou_gains"]
            axes[0].plot([counts.index(row["examples"])] * len(gains), gains, ".", color=colour, alpha=0.5)
    axes[0].axhline(0, color="black", linewidth=0.8)
    axes[0].set(title="gain of mean IoU over words alone, %", xlabel="examples of each class")
    axes[0].set_xticks(range(len(counts)), counts)
    axes[0].legend(title="preset")
    axes[1].plot([0, 100], [0, 100], color="tab:gray", linewidth=1)
    axes[1].plot(
        [row["name"] for row in results["alone"]], [row["only"] for row in results["alone"]], "o", color="tab:blue"
    )
    axes[1].set(title="IoU of a class by examples alone, %", xlabel="IoU by its name, %",
                xlim=(0, 100), ylim=(0, 100))  # fmt: skip
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(ExamplesOptions, description=__doc__))
