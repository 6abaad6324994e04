"""A labelled folder, labelled with many vocabularies: what the benchmarks of quality share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cliper.asked import DEFAULT_CLIP, DEFAULT_DIFFUSION
from cliper.ground_truth import IGNORED
from cliper.pipeline import Cliper, Features
from cliper.preprocess import InputSpec
from cliper.segmenter import Prediction
from cliper.settings import Preset
from cliper.specs import CliperSpec
from cliper.vocabulary import without_synonyms
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.prepare import PREPARED_SCHEMA, Preparer, read_prepared
from cluster.corpus.sources import read_shard
from cluster.encoders import truth_of
from jobs.common.options import MethodOptions
from jobs.common.request import find_models
from jobs.common.statistics import precision_recall_f1
from jobs.evaluation.datasets import Dataset, find_folder
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import RequestError
from schemas.rows import Status
from schemas.runs import labels_from_runs
from schemas.vocabulary import packaged_background

PRESETS: tuple[Preset, ...] = ("release", "open")
LEAST_SHARE = 0.002


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """The folder, the models, and where figures go."""

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
    part: tuple[int, int] = (0, 1)
    """First image and step, before anything else: 1 2 takes every other image from the second on."""
    seed: int = 0
    """Seed of the draws."""
    json: Path | None = None
    """JSON file for the figures."""
    figure: Path | None = None
    """SVG file for the figures."""

    def dataset(self) -> Dataset:
        """The part of the folder. In its masks 0 and 255 do not count."""
        found = find_folder(self.images, self.masks, self.classes, True, (0, 255), None, DEFAULT_LIMITS)
        return found.part(*self.part)


@dataclass
class Draw:
    """A vocabulary, and what was found with it.

    Attributes:
        words: class indices of the data set, ascending.
        cliper: the method with this vocabulary.
        counts: per image, int64 [3, words]: hits, true pixels and predicted pixels of each word.
        scores, found: per image the words' scores, and whether each has a mask.
    """

    preset: Preset
    words: np.ndarray
    cliper: Cliper
    counts: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    found: list[np.ndarray] = field(default_factory=list)

    @property
    def pixels(self) -> np.ndarray:
        """``counts`` over all images."""
        return np.sum(self.counts, axis=0)

    def add(self, prediction: Prediction, truth: np.ndarray) -> None:
        """Count one image; ``truth`` holds c + 1 for class c of the data set, or `IGNORED`."""
        runs, labels = prediction.runs, len(self.words) + 1
        predicted = labels_from_runs(runs.starts, runs.labels, runs.image_hw)
        counted = truth != IGNORED
        word = np.zeros(IGNORED, np.int64)
        word[self.words + 1] = np.arange(1, labels)
        pairs = word[truth[counted]] * labels + predicted[counted]
        confusion = np.bincount(pairs, minlength=labels**2).reshape(labels, labels)
        self.counts.append(np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])[:, 1:])
        self.scores.append(prediction.scores)
        self.found.append(np.isin(np.arange(1, labels), runs.labels))


def specification(options: FolderOptions, dataset: Dataset, preset: Preset, **given: Any) -> CliperSpec:
    """A preset's models and settings, and those given, with all classes as its vocabulary."""
    method = MethodOptions(clip=options.clip, diffusion=options.diffusion, preset=preset, **given)
    models = find_models(method, dataset.class_names)
    vocabulary = dataset.vocabulary(models.clip, None, options.text_embeddings, preset)
    return models.spec(vocabulary.ready or vocabulary.embed_words(models.clip), "auto")


def prepared_rows(dataset: Dataset, spec: CliperSpec) -> Iterator[dict[str, Any]]:
    """Images and masks as the job prepares them.

    Raises:
        RequestError: one cannot be read or has no mask.
    """
    corpus = dataset.labelled.corpus
    prepare = Preparer(spec.inputs, corpus.limits, dataset.labelled)
    for shard in corpus.shards:
        row = prepare(next(read_shard(corpus, shard)))
        if row["status"] != Status.OK:
            raise RequestError(row["error"])
        yield row


def class_shares(truth: np.ndarray, classes: int) -> np.ndarray:
    """Share of an image's pixels that each class covers."""
    return np.bincount(truth.ravel(), minlength=classes + 1)[1 : classes + 1] / truth.size


def with_background(embeddings: VocabularyEmbeddings, names: Sequence[str], preset: Preset) -> VocabularyEmbeddings:
    """Some classes of a data set as a vocabulary, and others as its background."""
    others = [name for name in embeddings.class_names if name not in names]
    if preset == "release":
        others = [name for name in others if name in packaged_background("voc")]
    rest = embeddings.select(others)
    vocabulary = replace(embeddings.select(names), background=rest.classes, background_words=rest.row_names)
    return without_synonyms(vocabulary) if preset == "open" else vocabulary


def label_image(row: dict[str, Any], inputs: InputSpec, draws: Sequence[Draw]) -> None:
    """Label an image with every vocabulary. What does not depend on the words is computed once per preset."""
    prepared = read_prepared(pa.Table.from_pylist([row], schema=PREPARED_SCHEMA), inputs)
    truth = truth_of(row)
    features: dict[Preset, Features] = {}
    for draw in draws:
        if draw.preset not in features:
            features[draw.preset] = draw.cliper.features(prepared)
        maps = draw.cliper.maps_of(features[draw.preset], prepared)
        draw.add(draw.cliper.read_out(maps, prepared)[0], truth)


def decision_figures(found: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 of masks as decisions that a class is present."""
    present = share > 0
    return precision_recall_f1((found & present).sum(), found.sum(), present.sum())
