"""Eight benchmarks as data: queries, published settings and mean IoU, and the layout of files and masks."""

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from cliper.settings import EncoderDefaults

ENCODERS = {"ViT-B-16:openai": "ViT-B/16", "ViT-L-14:openai": "ViT-L/14"}
"""The weights with published figures, by open_clip's architecture and pretraining tag."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(EncoderDefaults):
    """Published settings of one encoder on one benchmark, and the published figures.

    Attributes:
        templates: name of the prompt templates, one of `cliper.text.TEMPLATE_SETS`.
        sliding_crop_px: side of the windows in the results with ``sliding``; the others are without windows.
        sliding_background_threshold: ``background_threshold`` of the results with ``sliding``, if it is another one.
        published_miou: mean IoU in percent, None where none is published: ``paper_full``,
            ``paper_without_refinement``, ``release_full``, ``release_without_refinement``, ``release_sliding_full`` and
            ``release_sliding_without_refinement``.
    """

    templates: str
    sliding_crop_px: int
    sliding_background_threshold: float | None = None
    published_miou: dict[str, float | None]

    def with_windows(self) -> "EncoderSettings":
        """The settings of the results with ``sliding``."""
        own = self.sliding_background_threshold
        return self if own is None else replace(self, background_threshold=own)


@dataclass(frozen=True)
class Benchmark:
    """A labelled data set and how the method is measured on it.

    Attributes:
        name: of the data set, such as ``voc21``.
        classes: one text query for each class, in the order of the data set's labels.
        background_queries: phrases for what is no class.
        ignore_labels: labels that do not count, where 0 is no class and c the c-th class, counted from 1.
        images: number of images in the split that the figures are about.
        encoders: settings by the encoder's name, ``ViT-B/16`` and ``ViT-L/14``.
        not_done: what was done for the published figures and is not done here, each as a part of a sentence.
    """

    name: str
    classes: tuple[str, ...]
    background_queries: tuple[str, ...]
    ignore_labels: frozenset[int]
    images: int
    encoders: dict[str, EncoderSettings]
    not_done: tuple[str, ...] = ()

    @property
    def has_background(self) -> bool:
        """Pixels of no class are a class of their own, which counts in the mean IoU."""
        return 0 not in self.ignore_labels

    def encoder(self, patch_size_px: int) -> EncoderSettings:
        """Settings for an encoder: those of ViT-L/14 for patches of 14 pixels, else ViT-B/16's."""
        return self.encoders["ViT-L/14" if patch_size_px == 14 else "ViT-B/16"]


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
        images=facts["images"],
        not_done=tuple(facts.get("not_done", ())),
        encoders={encoder: EncoderSettings(**settings) for encoder, settings in facts["encoders"].items()},
    )


@cache
def read_published() -> dict:
    """The packaged facts of every benchmark."""
    return json.loads(files("cliper").joinpath("published.json").read_text(encoding="utf-8"))["datasets"]
