"""What an evaluation is over: the data set, its vocabulary and what is published about it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cliper.files import parse_text
from cliper.models import ClipSpec
from cliper.protocols import Protocol, find_protocol
from cliper.published import Benchmark, find_benchmark
from cliper.settings import Preset
from cliper.vocabulary import VocabularyRequest, read_embeddings, read_templates
from cluster.corpus.labelled import LabelledCorpus, list_index_masks, list_labelled
from cluster.corpus.layouts import Split
from cluster.corpus.limits import Limits
from cluster.corpus.readers import utf8
from cluster.storage import open_location
from jobs.evaluation.options import FOLDER, EvaluateOptions
from schemas.errors import RequestError
from schemas.vocabulary import VocabularyClass, packaged_background, parse_vocabulary


@dataclass(frozen=True)
class Dataset:
    """A labelled data set and the words for its classes.

    Attributes:
        name: a benchmark's, or ``folder``.
        labelled: images and masks.
        classes: in the order of labels.
        background: label 0 is a class of its own that counts.
        benchmark: what is published; None for a folder.
        protocol: how the authors of a baseline evaluate it on the benchmark; None for CLIPer's words and templates.
        split: of the benchmark.
    """

    name: str
    labelled: LabelledCorpus
    classes: tuple[VocabularyClass, ...]
    background: bool
    benchmark: Benchmark | None
    protocol: Protocol | None = None
    split: Split = "val"

    @property
    def class_names(self) -> list[str]:
        return [entry.name for entry in self.classes]

    @property
    def image_names(self) -> list[str]:
        return [utf8(shard.name) for shard in self.labelled.corpus.shards]

    @property
    def label_names(self) -> list[str]:
        """Names of the labels that count."""
        return ["background", *self.class_names] if self.background else self.class_names

    def part(self, start: int, step: int) -> "Dataset":
        """Every ``step``-th image from ``start`` on."""
        corpus = replace(self.labelled.corpus, shards=self.labelled.corpus.shards[start::step])
        return replace(self, labelled=replace(self.labelled, corpus=corpus))

    def vocabulary(
        self, clip: ClipSpec, templates: str | None, text_embeddings: str | None, preset: Preset
    ) -> VocabularyRequest:
        """The vocabulary, in the published templates if none are given.

        Raises:
            RequestError: a file is missing or wrong, or the embeddings lack a class.
        """
        if text_embeddings is not None:
            ready = read_embeddings(text_embeddings, self.classes)
            request = VocabularyRequest(self.classes, ready.background_words, (), ready)
            request.check_width(clip)
            return request
        if self.benchmark is None:
            background = packaged_background("world" if preset == "open" else "voc") if self.background else ()
            return VocabularyRequest(self.classes, background, read_templates(templates or "car"), ready=None)
        words = self.protocol or self.benchmark
        chosen = templates or (self.protocol or self.benchmark.encoder(clip.patch_size_px)).templates
        return VocabularyRequest(self.classes, words.background_queries, read_templates(chosen), ready=None)


def find_labelled(
    name: str, root: str | None, split: Split, limit: int | None, limits: Limits, protocol: Protocol | None = None
) -> Dataset:
    """One of the benchmarks as its makers lay it out, with the words of a baseline's protocol if there is one.

    Raises:
        RequestError: it is not there.
    """
    if root is None:
        raise RequestError(f"--root is missing: name the folder of data set {name}")
    benchmark = find_benchmark(name)
    labelled = list_labelled(name, open_location(root, "--root"), split, limit, limits)
    queries = protocol.queries if protocol else [(query,) for query in benchmark.classes]
    classes = tuple(VocabularyClass(of_class[0], of_class) for of_class in queries)
    return Dataset(name, labelled, classes, benchmark.has_background, benchmark, protocol, split)


def find_folder(
    images: str | None,
    masks: str | None,
    classes: str | None,
    background: bool,
    ignore: Sequence[int],
    limit: int | None,
    limits: Limits,
) -> Dataset:
    """Any folder of images and index masks with a class list.

    Raises:
        RequestError: something is missing or wrong.
    """
    if images is None or masks is None or classes is None:
        raise RequestError(f"--dataset {FOLDER} needs --images, --masks and --classes")
    entries = parse_text("--classes", classes, parse_vocabulary)
    labelled = list_index_masks(
        open_location(images, "--images"), open_location(masks, "--masks"), len(entries), background,
        frozenset(ignore), limit, limits,
    )  # fmt: skip
    return Dataset(FOLDER, labelled, entries, background and 0 not in ignore, benchmark=None)


def find_dataset(options: EvaluateOptions) -> Dataset:
    """The data set that is asked for; raises RequestError: it is not there."""
    if options.dataset == FOLDER:
        return find_folder(
            options.images, options.masks, options.classes, options.background, options.ignore, options.limit,
            options.limits,
        )  # fmt: skip
    published = options.choice.harness == "published" and not options.text_embeddings
    baseline = options.choice.baseline if published else None
    protocol = find_protocol(baseline, options.dataset) if baseline else None
    return find_labelled(options.dataset, options.root, options.split, options.limit, options.limits, protocol)
