"""Whether an evaluation is one that a published figure is about."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from cliper.asked import DEFAULT_DIFFUSION, flag
from cliper.published import ENCODERS, Benchmark
from cliper.settings import EncoderDefaults, MethodSettings
from jobs.common.methods import Method
from jobs.evaluation.datasets import Dataset
from jobs.evaluation.figures import Comparison
from jobs.evaluation.options import EvaluateOptions


def compare_with_published(dataset: Dataset, method: Method, options: EvaluateOptions) -> Comparison:
    """Compare weights, settings, words, protocol and split with those of the published figure."""
    benchmark = dataset.benchmark
    if benchmark is None:
        return Comparison()
    if options.choice.baseline:
        not_known = dataset.protocol.not_known if dataset.protocol else ""
        return Comparison(None, ("the package has those of CLIPer only", *([not_known] if not_known else ())))
    found = [*model_differences(method), *word_differences(benchmark, method, options)]
    images = len(dataset.labelled.corpus.shards)
    if dataset.split != "val":
        found.append(f"--split {dataset.split}, published val")
    elif images != benchmark.images:
        found.append(f"{images:,} images, published {benchmark.images:,}")
    if options.given_labels:
        found.append("--given-labels")
    if options.examples is not None:
        found.append("--examples")
    settings = method.settings
    sliding, figure = settings["windows"] == "average", None
    if settings["preset"] == "open":
        found.append("preset open has no published figures")
    else:
        found += setting_differences(benchmark, method.clip.patch_size_px, settings)
        without = "without_refinement" if settings["compensation"] == "none" else "full"
        result = f"{settings['preset']}_{'sliding_' * sliding}{without}"
        encoder = ENCODERS.get(method.clip.pretrained)
        figure = benchmark.encoders[encoder].published_miou.get(result) if encoder else None
    found += benchmark.not_done
    return Comparison(None if found else figure, tuple(found))


def model_differences(method: Method) -> Iterator[str]:
    if method.clip.pretrained not in ENCODERS:
        yield f"weights of {method.clip.name}, published for OpenAI's {' and '.join(ENCODERS.values())}"
    diffusion: Any = method.models.get("diffusion")
    if diffusion and diffusion["name"].partition("@")[0] != DEFAULT_DIFFUSION:
        yield f"--diffusion {diffusion['name']}, published {DEFAULT_DIFFUSION}"


def word_differences(benchmark: Benchmark, method: Method, options: EvaluateOptions) -> Iterator[str]:
    published = benchmark.encoder(method.clip.patch_size_px).templates
    if options.text_embeddings is not None:
        yield "--text-embeddings"
    elif options.templates not in (None, published):
        yield f"--templates {options.templates}, published {published}"


def setting_differences(benchmark: Benchmark, patch_size_px: int, settings: Mapping[str, Any]) -> Iterator[str]:
    """The settings, as `MethodSettings.document` gives them, that differ from the published ones."""
    encoder, sliding = benchmark.encoder(patch_size_px), settings["windows"] == "average"
    known = vars(encoder.with_windows() if sliding else encoder)
    published = MethodSettings(
        **{setting.name: known[setting.name] for setting in fields(EncoderDefaults)},
        preset=settings["preset"],
        compensation="none" if settings["compensation"] == "none" else "product",
        windows="average" if sliding else "none",
        sliding_crop_px=encoder.sliding_crop_px if sliding else 0,
    )
    for name, value in published.document().items():
        if settings[name] != value:
            yield f"{flag(name)} {settings[name]}, published {value}"
