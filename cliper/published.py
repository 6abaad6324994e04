"""What has been published for the method on eight benchmarks: queries, settings and mean IoU, as data."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

BENCHMARKS = ("voc21", "voc20", "context60", "context59", "coco_object", "coco_stuff", "ade20k", "cityscapes")
"""PASCAL VOC, PASCAL Context (both with and without background), COCO-Object, COCO-Stuff, ADE20K and Cityscapes."""


@dataclass(frozen=True)
class EncoderSettings:
    """Published settings of one encoder on one benchmark, and what came of them.

    Attributes:
        templates: name of the prompt templates, one of `cliper.text.TEMPLATE_SETS`.
        shorter_side_px, select_layer, logit_scale, attention_threshold, score_threshold, background_threshold,
            normalize_maps: as in `cliper.settings.MethodSettings`.
        sliding_crop_px: side of the windows in the results with ``sliding``; the others are without windows.
        published_miou: mean IoU in percent, None where none is published: ``paper_full``,
            ``paper_without_refinement``, ``release_full``, ``release_without_refinement``, ``release_sliding_full`` and
            ``release_sliding_without_refinement``.
    """

    templates: str
    shorter_side_px: int
    select_layer: int
    logit_scale: float
    attention_threshold: float
    score_threshold: float
    background_threshold: float
    normalize_maps: bool
    sliding_crop_px: int
    published_miou: dict[str, float | None]


@dataclass(frozen=True)
class Benchmark:
    """A labelled data set and how the method is measured on it.

    Attributes:
        name: one of `BENCHMARKS`.
        classes: one text query for each class, in the order of the data set's labels.
        background_queries: phrases for what is no class.
        ignore_labels: labels that do not count, where 0 is no class and c the c-th class, counted from 1.
        encoders: settings by the encoder's name, ``ViT-B/16`` and ``ViT-L/14``.
    """

    name: str
    classes: tuple[str, ...]
    background_queries: tuple[str, ...]
    ignore_labels: frozenset[int]
    encoders: dict[str, EncoderSettings]

    @property
    def has_background(self) -> bool:
        """Pixels of no class are a class of their own, which counts in the mean IoU."""
        return 0 not in self.ignore_labels

    def encoder(self, patch_size_px: int) -> EncoderSettings:
        """Settings for an encoder: those of ViT-L/14 for patches of 14 pixels, else ViT-B/16's."""
        return self.encoders["ViT-L/14" if patch_size_px == 14 else "ViT-B/16"]


def find_benchmark(name: str) -> Benchmark:
    """What is published on one of `BENCHMARKS`.

    Raises:
        ValueError: there is no such benchmark.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    facts = read_published()[name]
    return Benchmark(
        name=name,
        classes=tuple(facts["classes"]),
        background_queries=tuple(facts["background_queries"]),
        ignore_labels=frozenset(facts["ignore_labels"]),
        encoders={encoder: EncoderSettings(**settings) for encoder, settings in facts["encoders"].items()},
    )


@cache
def read_published() -> dict:
    """The packaged facts of every benchmark."""
    return json.loads(files("cliper").joinpath("published.json").read_text(encoding="utf-8"))["datasets"]
