"""Quality with what sharpens maps: no compensation, the guided filter, and every affinity for which there are weights.

Vocabularies are drawn as in `benchmarks.any_words`; all kinds get the same. Differences are to the first kind. Run it
from the repository root: ``python -m benchmarks.affinities --images DIR --masks DIR --classes FILE``. In index masks 0
and 255 do not count, and c is the c-th class. ``--figure`` also draws what an image costs, from the counts of
`benchmarks.counts`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.any_words import AnyWordsOptions, draw_vocabularies, figures
from benchmarks.labelled_folder import Draw, class_shares, prepared_rows, specification
from benchmarks.roofline import AFFINITY_STAGES, H100, floors
from cliper.pipeline import ClipFeatures, Features
from cliper.settings import DIFFUSION_AFFINITY, Preset
from cliper.specs import CliperSpec
from cluster.corpus.prepare import PREPARED_SCHEMA, read_prepared
from cluster.encoders import truth_of
from jobs.common.statistics import intersection_over_union
from jobs.evaluation.datasets import Dataset

COSTS = Path(__file__).with_name("affinity_counts.json")


@dataclass(frozen=True, kw_only=True)
class AffinitiesOptions(AnyWordsOptions):
    """What to measure."""

    kinds: tuple[str, ...] = ("none", "guided", "clip")
    """none, guided, diffusion, clip or timm:NAME."""
    presets: tuple[Preset, ...] = ("open",)
    """Presets."""
    sizes: tuple[int, ...] = (5, 20)
    """Words in a vocabulary."""
    draws: int = 10
    """Vocabularies of each size."""
    in_images: int = 3
    """Images that a class must be seen in to be drawn."""


def main(options: AffinitiesOptions) -> None:
    """Measure, print the table, and write figures."""
    console, dataset = Console(), options.dataset()
    results = []
    for preset in options.presets:
        draws, shares = measure(options, dataset, preset, console)
        first = draws[options.kinds[0]]
        results += [
            {"kind": kind} | compared(of_size(draws[kind], size), of_size(first, size), shares)
            for kind in options.kinds
            for size in sorted({len(draw.words) for draw in draws[kind]})
        ]
    show(results, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.figure:
        plot(results, json.loads(COSTS.read_text()), options.figure)


def measure(
    options: AffinitiesOptions, dataset: Dataset, preset: Preset, console: Console
) -> tuple[dict[str, list[Draw]], np.ndarray]:
    """The draws of every kind, and the share of every image's pixels that each class covers. What CLIP sees in an image
    is computed once."""
    specs = {kind: specification_of(options, dataset, kind, preset) for kind in options.kinds}
    prepared = {kind: list(prepared_rows(dataset, spec)) for kind, spec in specs.items()}
    truths = [truth_of(row) for row in prepared[options.kinds[0]]]
    shares = np.stack([class_shares(truth, len(dataset.classes)) for truth in truths])
    draws = {kind: draw_vocabularies(options, dataset, {preset: spec}, shares) for kind, spec in specs.items()}
    for index, truth in enumerate(track(truths, "labelling", console=console)):
        clip: list[ClipFeatures] = []
        for kind, of_kind in draws.items():
            table = pa.Table.from_pylist([prepared[kind][index]], schema=PREPARED_SCHEMA)
            image, cliper = read_prepared(table, specs[kind].inputs), of_kind[0].cliper
            with torch.inference_mode():
                clip = clip or list(cliper.clip_features(image))
                features = Features(clip, list(cliper.affinity_attention(image, [0])))
            for draw in of_kind:
                draw.add(draw.cliper.read_out(draw.cliper.maps_of(features, image), image)[0], truth)
    return draws, shares


def specification_of(options: AffinitiesOptions, dataset: Dataset, kind: str, preset: Preset) -> CliperSpec:
    """Models and settings of a kind."""
    if kind == DIFFUSION_AFFINITY:
        return specification(options, dataset, preset)
    changes = {"compensation": kind} if kind in ("none", "guided") else {"affinity": kind}
    return specification(replace(options, diffusion="none"), dataset, preset, **changes)


def of_size(draws: Sequence[Draw], size: int) -> list[Draw]:
    """Those with so many words."""
    return [draw for draw in draws if len(draw.words) == size]


def compared(draws: Sequence[Draw], others: Sequence[Draw], shares: np.ndarray) -> dict[str, Any]:
    """Figures in percent, and the difference of mean IoU to other draws of the same words."""
    mious = [
        np.array([100 * np.nanmean(intersection_over_union(*draw.pixels)) for draw in of]) for of in (draws, others)
    ]
    gain = mious[0] - mious[1]
    more = {"gain": round(float(gain.mean()), 1), "gain_spread": round(float(gain.std()), 1)}
    kept = ("preset", "words", "draws", "miou", "miou_spread", "f1", "map")
    return {name: value for name, value in figures(draws, shares).items() if name in kept} | more


COLUMNS = {
    "preset": "preset", "words": "words", "kind": "sharpened by", "miou": "mIoU", "miou_spread": "±", "gain": "gain",
    "gain_spread": "±", "f1": "F1", "map": "mAP",
}  # fmt: skip


def show(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the figures; ± is the standard deviation over draws."""
    table = Table(*COLUMNS.values())
    for result in results:
        table.add_row(*(str(result[name]) for name in COLUMNS))
    console.print(table)


def predicted_ms(counts: Mapping[str, Any]) -> float:
    """The least milliseconds of an image's affinity and compensation on an H100, from counts."""
    found = floors(counts, H100)
    return sum(found[stage].both for stage in AFFINITY_STAGES if stage in found)


def plot(results: Sequence[Mapping[str, Any]], costs: Mapping[str, Any], path: Path) -> None:
    """Gains by kind and size of the vocabulary, and predicted milliseconds of every affinity."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    kinds = list(dict.fromkeys(result["kind"] for result in results))[1:]
    cases = list(dict.fromkeys((result["preset"], result["words"]) for result in results))
    for place, kind in enumerate(kinds):
        own = [result for result in results if result["kind"] == kind]
        places = np.arange(len(cases)) + 0.35 * (place - (len(kinds) - 1) / 2)
        left.bar(places, [of["gain"] for of in own], 0.3, yerr=[of["gain_spread"] for of in own], capsize=3, label=kind)
    left.set_xticks(range(len(cases)), [f"{preset}, {words} words" for preset, words in cases])
    left.axhline(0, color="black", linewidth=0.8)
    left.set(title="gain of mean IoU over no compensation, points")
    left.legend()
    names = list(costs)[::-1]
    right.barh(names, [predicted_ms(costs[name]) for name in names], color="tab:gray")
    right.set(title="predicted ms an image on an H100, not measured", xscale="log")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(tyro.cli(AffinitiesOptions, description=__doc__))
