"""Eight benchmarks as data: queries, published settings and mean IoU, and the layout of files and masks."""

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from cliper.settings import EncoderDefaults

ENCODERS = {(16, 12): "ViT-B/16", (14, 24): "ViT-L/14"}
"""Patch size in pixels and number of blocks of the encoders with published figures."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(EncoderDefaults):
    """Published settings of one encoder on one benchmark, and the published figures.

    Attributes:
        templates: name of the prompt templates, one of `cliper.text.TEMPLATE_SETS`.
        sliding_crop_px: side of the windows in the results with ``sliding``; the others are without windows.
        published_miou: mean IoU in percent, None where none is published: ``paper_full``,
            ``paper_without_refinement``, ``release_full``, ``release_without_refinement``, ``release_sliding_full`` and
            ``release_sliding_without_refinement``.
    """

    templates: str
    sliding_crop_px: int
    published_miou: dict[str, float | None]


@dataclass(frozen=True)
class Benchmark:
    """A labelled data set and how the method is measured on it.

    Attributes:
        name: of the data set, such as ``voc21``.
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

    def published_miou(self, patch_size_px: int, blocks: int, result: str) -> float | None:
        """A published mean IoU in percent; None if there is none for such an encoder."""
        name = ENCODERS.get((patch_size_px, blocks))
        return None if name is None else self.encoders[name].published_miou[result]


Profile = Literal["objects", "scene", "street"]
PROFILES: dict[Profile, tuple[str, ...]] = {
    "objects": ("voc21", "coco_object"),
    "scene": ("coco_stuff", "ade20k"),
    "street": ("cityscapes",),
}


def profile_settings(profile: Profile, patch_size_px: int) -> dict[str, Any]:
    """The settings on which the published settings of a profile's benchmarks agree, for an encoder."""
    first, *others = (vars(find_benchmark(name).encoder(patch_size_px)) for name in PROFILES[profile])
    names = (setting.name for setting in fields(EncoderDefaults))
    return {name: first[name] for name in names if all(other[name] == first[name] for other in others)}


def find_benchmark(name: str) -> Benchmark:
    """What is published on a benchmark.

    Raises:
        ValueError: there is no such benchmark.
    """
    published = read_published()
    if name not in published:
        raise ValueError(f"there is no benchmark {name!r}: choose one of {', '.join(published)}")
    facts = published[name]
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
