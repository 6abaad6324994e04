"""From a request to the files of figures."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from cliper.decode import decode_rgb, image_seed
from cliper.files import parse_file
from cliper.models import ModelError
from cliper.pipeline import Cliper
from cliper.segmenter import Segmenter
from cliper.specs import SegmenterSpec, best_device
from cliper.vocabulary import VocabularyRequest, read_vocabulary
from jobs.common.methods import Method, MethodChoice, find_method
from jobs.common.options import MethodOptions
from jobs.figures import panels
from jobs.figures.drawing import draw, save
from jobs.figures.options import NEED_WORDS, FigureOptions
from jobs.figures.panels import Point, Rows
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import DecodeError, RequestError


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
