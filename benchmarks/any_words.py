"""Quality on vocabularies that nobody tuned for: words drawn at random from the classes of a labelled folder.

A vocabulary is 1, 2, 5, 20 or 80 of the classes. The other classes are available as background words: preset ``open``
gets all that do not mean the same as a word of the vocabulary, preset ``release`` those that are among its own
background words. Everything else has its default. Classes are drawn from those that cover 0.2 % of at least
``--in-images`` images; for large vocabularies from all that occur.

Run it from the repository root: ``python -m benchmarks.any_words --images DIR --masks DIR --classes FILE``. Masks are
index masks: 0 and 255 do not count, c is the c-th class.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cliper.compensation import guided, refine
from cliper.fusion import fuse
from cliper.pipeline import Cliper, Maps, Prediction, channels_first
from cliper.preprocess import Prepared
from cliper.settings import Preset
from cluster.actors import CliperSpec
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.prepare import PREPARED_SCHEMA, Preparer, read_prepared
from cluster.corpus.sources import read_shard
from cluster.encoders import truth_of
from jobs.common.options import DEFAULT_CLIP, DEFAULT_DIFFUSION, MethodOptions
from jobs.common.request import find_models, leave_out
from jobs.common.statistics import (
    best_thresholds,
    calibration_error,
    intersection_over_union,
    mean_average_precision,
    threshold_figures,
)
from jobs.evaluation.datasets import Dataset, find_folder
from schemas.embeddings import VocabularyEmbeddings
from schemas.vocabulary import packaged_background

PRESETS: tuple[Preset, ...] = ("release", "open")
LEAST_SHARE = 0.002
LARGE_SHARE = 0.01
"""Share of an image's pixels from which a class is large in it."""


@dataclass(frozen=True)
class AnyWordsOptions:
    """What to measure."""

    images: str
    """Folder of images."""
    masks: str
    """Folder of index masks: PNG files with the images' names."""
    classes: str
    """Class list: one class per line in the order of mask values, or "name: query one; query two"."""
    clip: str = DEFAULT_CLIP
    """CLIP model."""
    diffusion: str = DEFAULT_DIFFUSION
    """Diffusion model, or none."""
    text_embeddings: str | None = None
    """Ready text embeddings of the classes (safetensors)."""
    sizes: tuple[int, ...] = (1, 2, 5, 20, 80)
    """Words in a vocabulary."""
    draws: int = 20
    """Vocabularies of each size."""
    in_images: int = 4
    """Images that a class must be seen in to be drawn."""
    part: tuple[int, int] = (0, 1)
    """First image and step: 1 2 takes every other image from the second on."""
    seed: int = 0
    """Seed of the draws."""
    json: Path | None = None
    """JSON file for the figures."""
    figure: Path | None = None
    """SVG file for the figures and the reliability of the probabilities."""


@dataclass(frozen=True)
class Draw:
    """A vocabulary and the models' view of it.

    Attributes:
        words: class indices of the data set.
        cliper: the method with this vocabulary.
    """

    preset: Preset
    words: tuple[int, ...]
    cliper: Cliper


@dataclass
class Outcome:
    """What a draw's rows say; arrays have one row per image."""

    scores: list[np.ndarray]
    found: list[np.ndarray]
    pixels: np.ndarray
    """int64 [3, words]: pixels that are and are predicted, that are, that are predicted."""


def main(options: AnyWordsOptions) -> None:
    """Measure, print the table, and write figures."""
    console = Console()
    dataset = find_folder(options.images, options.masks, options.classes, True, (0, 255), None, DEFAULT_LIMITS)
    dataset = dataset.part(*options.part)
    specs = {preset: specification(options, dataset, preset) for preset in PRESETS}
    rows = list(
        track(prepared_rows(dataset, specs["open"]), "reading", len(dataset.labelled.corpus.shards), console=console)
    )
    shares = np.stack([class_shares(truth_of(row), len(dataset.classes)) for row in rows])
    draws = draw_vocabularies(options, dataset, specs, shares)
    outcomes = [Outcome([], [], np.zeros((3, len(draw.words)), np.int64)) for draw in draws]
    for row in track(rows, "labelling", console=console):
        label_image(row, specs["open"].inputs, draws, outcomes)
    results = []
    for preset, size in product(PRESETS, options.sizes):
        own = [
            pair for pair in zip(draws, outcomes, strict=True) if (pair[0].preset, len(pair[0].words)) == (preset, size)
        ]
        results += [figures(preset, size, own, shares)] if own else []
    show(results, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.figure:
        plot(results, options.figure)


def specification(options: AnyWordsOptions, dataset: Dataset, preset: Preset) -> CliperSpec:
    """A preset's models and settings, with all classes as its vocabulary."""
    method = MethodOptions(clip=options.clip, diffusion=options.diffusion, preset=preset)
    models = find_models(method, dataset.class_names)
    vocabulary = dataset.vocabulary(models.clip, None, options.text_embeddings)
    return models.spec(vocabulary.embed(models.clip), "auto")


def prepared_rows(dataset: Dataset, spec: CliperSpec) -> Iterator[dict[str, Any]]:
    """Images and masks as the job prepares them.

    Raises:
        RequestError: one cannot be read or has no mask.
    """
    corpus = dataset.labelled.corpus
    prepare = Preparer(spec.inputs, corpus.limits, dataset.labelled, dataset.background)
    for shard in corpus.shards:
        row = prepare(next(read_shard(corpus, shard)))
        if row["status"] != Status.OK:
            raise RequestError(row["error"])
        yield row


def class_shares(truth: np.ndarray, classes: int) -> np.ndarray:
    """Share of an image's pixels that each class covers."""
    return np.bincount(truth.ravel(), minlength=IGNORED + 1)[1 : classes + 1] / truth.size


def draw_vocabularies(
    options: AnyWordsOptions, dataset: Dataset, specs: dict[Preset, CliperSpec], shares: np.ndarray
) -> list[Draw]:
    """The vocabularies of all sizes, the same ones for every preset."""
    frequent = np.flatnonzero((shares > LEAST_SHARE).sum(axis=0) >= options.in_images)
    occurring = np.flatnonzero(shares.any(axis=0))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    built = {preset: spec.build(device) for preset, spec in specs.items()}
    draws = []
    for size in options.sizes:
        rng = np.random.default_rng([options.seed, size])
        pool = frequent if size <= len(frequent) else occurring
        for words in (np.sort(rng.permutation(pool)[:size]) for _ in range(options.draws)):
            for preset, spec in specs.items():
                names = [dataset.class_names[word] for word in words]
                queries = build_queries(with_background(spec.embeddings, names, preset), preset)
                whole = built[preset]
                draws.append(Draw(preset, words, Cliper(whole.tower, queries, spec.settings, whole.diffusion)))
    return draws


def with_background(embeddings: VocabularyEmbeddings, names: Sequence[str], preset: Preset) -> VocabularyEmbeddings:
    """Some classes of a data set as a vocabulary, the others as its background."""
    others = [name for name in embeddings.class_names if name not in names]
    if preset == "release":
        others = [name for name in others if name in packaged_background("voc")]
    background = embeddings.select(others)
    chosen = replace(embeddings.select(names), background=background.classes, background_words=background.row_names)
    return leave_out_synonyms(chosen) if preset == "open" else chosen


def label_image(row: dict[str, Any], inputs: InputSpec, draws: Sequence[Draw], outcomes: Sequence[Outcome]) -> None:
    """Label an image with every vocabulary. What does not depend on the words is computed once for each preset."""
    prepared = read_prepared(pa.Table.from_pylist([row], schema=PREPARED_SCHEMA), inputs)
    truth = truth_of(row)
    features: dict[Preset, Features] = {}
    for draw, outcome in zip(draws, outcomes, strict=True):
        if draw.preset not in features:
            features[draw.preset] = draw.cliper.features(prepared)
        maps = draw.cliper.maps_of(features[draw.preset])
        (prediction,) = draw.cliper.read_out(maps, prepared)
        runs = prediction.runs
        found = labels_from_runs(runs.starts, runs.labels, runs.image_hw)
        confusion = np.bincount(...)
