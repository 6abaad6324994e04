"""Draw the paper's figures for images of your own: patch embeddings, attention, label maps, compensation."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from cliper.baselines import Harness
from cliper.decode import decode_rgb, image_seed
from cliper.files import parse_file
from cliper.models import ModelError
from cliper.pipeline import Cliper, Segmenter
from cliper.proxy import DEFAULT_PROXY
from cliper.specs import SegmenterSpec, best_device
from cliper.vocabulary import VocabularyRequest, read_vocabulary
from jobs.common.exit_codes import run_job
from jobs.common.methods import Method, MethodChoice, MethodName, find_method
from jobs.common.options import MethodOptions
from jobs.figures import panels
from jobs.figures.drawing import draw, save
from jobs.figures.panels import Point, Rows
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import DecodeError, RequestError

FORMATS = (".png", ".svg")
Kind = Literal["embeddings", "attention", "methods", "compensation"]
NEED_WORDS: tuple[Kind, ...] = ("methods", "compensation")


@dataclass(frozen=True)
class FigureOptions:
    """Options of the figures."""

    figure: Kind
    """embeddings (paper figure 2): principal components of CLIP's patch embeddings, and their similarity to a point.
    attention (figure 3): what CLIP and Stable Diffusion attend to from points. methods (figure 5): label maps side by
    side. compensation (figure 6): maps and masks before and after."""
    images: tuple[str, ...]
    """Image files: local paths or URLs."""
    output: tuple[Path, ...]
    """Files to write: .png, .svg or both."""
    models: MethodOptions
    points: tuple[tuple[float, float], ...] = ((0.5, 0.5),)
    """For embeddings and attention: points x y, as shares of width and height from the upper left. embeddings shows
    the first."""
    vocab: str | None = None
    """For methods and compensation: vocabulary, as for jobs/annotate.py."""
    background: str | None = None
    """Background words, as for jobs/annotate.py."""
    text_embeddings: str | None = None
    """Precomputed text embeddings (safetensors) in place of CLIP's text tower."""
    templates: str = "car"
    """Prompt templates, as for jobs/annotate.py."""
    methods: tuple[MethodName, ...] = ("clip", "maskclip", "sclip", "clearclip", "cliper")
    """For methods: which, from left to right."""
    harness: Harness = "shared"
    """How the baselines among them are run, as for jobs/evaluate.py."""
    proxy: str = DEFAULT_PROXY
    """Second model for proxyclip: timm's name of a DINO transformer, or local-dir:FOLDER."""
    classes: int = 3
    """For compensation: how many classes are shown, those with the highest scores."""

    def check(self) -> None:
        """Raises RequestError: options do not go together, or a number makes no sense."""
        for path in self.output:
            if path.suffix not in FORMATS:
                raise RequestError(f"--output {path}: figures are {' and '.join(FORMATS)} files")
            if not path.resolve().parent.is_dir():
                raise RequestError(f"--output {path}: the folder does not exist")
        if not self.points or not all(0 <= share <= 1 for point in self.points for share in point):
            raise RequestError("--points must be pairs of shares between 0 and 1")
        if self.classes < 1:
            raise RequestError(f"--classes must be at least 1, not {self.classes}")
        if self.figure == "attention" and self.models.diffusion == "none":
            raise RequestError("--figure attention shows what the diffusion model does: give --diffusion")
        if self.figure == "compensation" and self.models.asked().compensation == "none":
            raise RequestError("--figure compensation needs --diffusion, or --compensation guided")


def figure(options: FigureOptions, console: Console) -> None:
    """From the request to the files."""
    options.check()
    images = [
        parse_file("--images", address, lambda data: (decoded(data), image_seed(data))) for address in options.images
    ]
    words = read_words(options)
    rows: Rows = []
    with torch.inference_mode():
        make = ROWS[options.figure](options, words)
        for image, seed in images:
            rows += make(image, seed)
    drawn = draw(rows, words.class_names if words else ())
    for path in options.output:
        save(drawn, path)
        console.print(f"Written: {path}", soft_wrap=True)


def decoded(data: bytes) -> Image.Image:
    """Raises ValueError: the bytes are no image."""
    try:
        return decode_rgb(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def read_words(options: FigureOptions) -> VocabularyRequest | None:
    """The vocabulary; None for figures without words. Raises RequestError: it is missing or wrong."""
    if options.figure not in NEED_WORDS:
        return None
    return read_vocabulary(
        options.vocab, options.background, options.templates, options.text_embeddings, options.models.preset
    )


MakeRows = Callable[[Image.Image, int], Rows]


def embedding_rows(options: FigureOptions, words: VocabularyRequest | None) -> MakeRows:
    cliper = build_cliper(options, words)
    return lambda image, seed: panels.embeddings(
        cliper.tower, image, cliper.inputs.prepare(image, seed), Point(*options.points[0])
    )


def attention_rows(options: FigureOptions, words: VocabularyRequest | None) -> MakeRows:
    cliper, points = build_cliper(options, words), [Point(*point) for point in options.points]
    return lambda image, seed: panels.attention(cliper, image, cliper.inputs.prepare(image, seed), points)


def method_rows(options: FigureOptions, words: VocabularyRequest | None) -> MakeRows:
    assert words is not None, "the figure needs words"
    segmenters = {}
    for name in options.methods:
        choice = MethodChoice(name, options.harness, options.proxy)
        # The settings that were given are CLIPer's.
        alone = MethodOptions(clip=options.models.clip, precision=options.models.precision)
        given = alone if choice.baseline else options.models
        method = find_method(choice, given, words.class_names, bool(words.background))
        spec = method.spec(embed(words, method))
        segmenters[name] = spec.inputs, build(spec)

    def make(image: Image.Image, seed: int) -> Rows:
        found = segmenters.items()
        return panels.methods(
            {title: segmenter.predict([inputs.prepare(image, seed)])[0] for title, (inputs, segmenter) in found}, image
        )

    return make


def compensation_rows(options: FigureOptions, words: VocabularyRequest | None) -> MakeRows:
    assert words is not None, "the figure needs words"
    cliper = build_cliper(options, words)
    return lambda image, seed: panels.compensation(
        cliper, image, cliper.inputs.prepare(image, seed), words.class_names, options.classes
    )


ROWS = {
    "embeddings": embedding_rows, "attention": attention_rows, "methods": method_rows, "compensation": compensation_rows
}  # fmt: skip


def build_cliper(options: FigureOptions, words: VocabularyRequest | None) -> Cliper:
    """CLIPer with its models. Raises RequestError: they cannot be found or loaded."""
    method = find_method(MethodChoice(), options.models, words.class_names if words else ())
    built = build(method.spec(embed(words, method)))
    assert isinstance(built, Cliper), "the default method"
    return built


def build(spec: SegmenterSpec) -> Segmenter:
    """Load a method's models, onto a GPU if there is one. Raises RequestError: they cannot be loaded."""
    try:
        return spec.build(best_device())
    except ModelError as error:
        raise RequestError(str(error)) from error


def embed(words: VocabularyRequest | None, method: Method) -> VocabularyEmbeddings:
    """The words' embeddings; any word for a figure that does not depend on them."""
    if words is None:
        any_word = np.eye(1, method.clip.model_cfg["embed_dim"], dtype=np.float32)
        return VocabularyEmbeddings(any_word, ("any",), any_word[:0], ())
    words.check_width(method.clip)
    return words.embed(method.clip, method.cliper.preset)


main = partial(run_job, FigureOptions, figure, __doc__)

if __name__ == "__main__":
    sys.exit(main())
