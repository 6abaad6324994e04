"""Labelling images in a program or a notebook, with the arithmetic, the defaults and the seeds of the job."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, get_args, overload

import numpy as np
import torch
from PIL import Image, ImageOps

from cliper.asked import DECLARED, DEFAULT_CLIP, DEFAULT_DIFFUSION, Asked, Precision, given_default
from cliper.decode import MAX_PIXELS, decode_rgb, image_seed, to_rgb
from cliper.examples import read_examples
from cliper.files import parse_file
from cliper.pipeline import Cliper
from cliper.preprocess import Prepared
from cliper.published import Profile
from cliper.resolve import check_choice, check_given, find_models, read_settings_file
from cliper.result import Result
from cliper.rows import NOT_FINITE, label_columns
from cliper.segmenter import Prediction
from cliper.settings import Preset
from cliper.specs import best_device, torch_flags
from cliper.visual import add_examples
from cliper.vocabulary import Lines, read_vocabulary
from schemas.errors import DecodeError, RequestError
from schemas.runs import labels_from_runs

Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""An image: a local path or a URL that fsspec opens, the bytes of a file, or pixels."""
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")
ARRAY = "an array must be uint8 [height, width] or [height, width, channels] with 1, 3 (RGB) or 4 (RGBA) channels"


class Opened(NamedTuple):
    """An image that was decoded and prepared for the models; ``image`` is RGB and upright."""

    name: str
    image: Image.Image
    prepared: Prepared


class Labeler:
    """Labels images with words of your own.

    The words are embedded and the models are looked for at once; the weights are loaded for the first image. A labeler
    can be sent to other processes, which load the models themselves.

    On a CPU the labels of a file are those of ``jobs/annotate.py`` with the same options, to the last bit.

    Args:
        vocab: the classes: lines as in a vocabulary file (``"dog"`` or ``"frisbee: frisbee; flying disc"``), or the
            path or URL of such a file. None takes the classes of ``text_embeddings``.
        clip: CLIP model: an open_clip name (docs/beyond.md lists the families), ``local-dir:FOLDER`` or ``demo``.
        diffusion: diffusion model: a hub repository, a folder, ``demo`` or ``none``.
        background: background words: lines, a file, ``+FILE`` to add a file's words to the packaged ones, or ``none``;
            None for the packaged ones.
        templates: name of a set of prompt templates (``car``, ``openai_imagenet_80``, ``maskclip_85``), a file or a
            list with ``{}`` for the class.
        examples: folder with some labelled images of classes, see `cliper.examples`. A line of ``vocab`` with nothing
            after its colon is a class that only examples show.
        text_embeddings: file with embeddings, used in place of CLIP's text tower.
        preset: ``open``, ``release`` or ``paper``.
        profile: with preset ``release``: ``objects``, ``scene`` or ``street``.
        settings: settings file of ``jobs/evaluate.py --calibrate``.
        precision: number format of the models: ``auto``, ``bf16``, ``fp16`` or ``fp32``; auto is fp16 on a GPU and fp32
            on a CPU.
        device: torch's name of a device; None for a GPU if there is one.
        max_pixels: larger images are refused.
        given: settings of the method, by the names of `cliper.settings.MethodSettings`, such as ``affinity="clip"``.

    Attributes:
        classes: names of the classes, in vocabulary order.

    Raises:
        ValueError: words, models or settings are wrong. The message is one sentence.
        TypeError: there is no such setting.
    """

    def __init__(
        self,
        vocab: Lines | os.PathLike[str] | None,
        clip: str = DEFAULT_CLIP,
        diffusion: str = DEFAULT_DIFFUSION,
        *,
        background: Lines | os.PathLike[str] | None = None,
        templates: Lines | os.PathLike[str] = "car",
        examples: str | os.PathLike[str] | None = None,
        text_embeddings: str | os.PathLike[str] | None = None,
        preset: Preset = "open",
        profile: Profile | None = None,
        settings: str | os.PathLike[str] | None = None,
        precision: Precision = "auto",
        device: str | torch.device | None = None,
        max_pixels: int = MAX_PIXELS,
        **given: Any,
    ) -> None:
        self.device = None if device is None else known_device(device)
        self.max_pixels = max_pixels
        check_choice("precision", precision, get_args(Precision))
        check_choice("profile", profile, (None, *get_args(Profile)))
        asked = Asked(clip, diffusion, asked_settings(given | {"preset": preset}), profile)
        with in_python():
            words = read_vocabulary(
                address(vocab), address(background), address(templates), address(text_embeddings), preset,
                wordless=examples is not None,
            )  # fmt: skip
            file = read_settings_file(address(settings), words.class_names)
            models = find_models(asked, file, words.class_names)
            words.check_width(models.clip)
            if examples is not None:
                words = words.with_examples(read_examples(address(examples), models.inputs, max_pixels=max_pixels))
            embeddings = words.embed(models.clip, preset, self.device)
            embeddings = add_examples(embeddings, words.examples, models.clip, models.settings, self.device)
            self.spec = models.spec(embeddings, precision)
        self.classes = tuple(words.class_names)

    def __repr__(self) -> str:
        return f"Labeler of {len(self.classes)} classes with {self.spec.clip.name}"

    @overload
    def __call__(self, image: Source, name: str | None = None) -> Result: ...

    @overload
    def __call__(self, image: list[Any] | tuple[Source, ...], name: Sequence[str] | None = None) -> list[Result]: ...

    def __call__(self, image: Any, name: Any = None) -> Result | list[Result]:
        """Label an image, or each of a list or tuple of images.

        The noise of the diffusion model is seeded from a file's bytes, or from the pixels of an image that is no file.

        Args:
            image: a path, a URL, the bytes of a file, a PIL image, or an array: uint8 [height, width, 3] in RGB,
                [height, width] in grey, or with a fourth channel that is dropped.
            name: of the image, or of each image; by default its path or URL, else "image".

        Raises:
            ValueError: an image cannot be read or decoded, or the models gave no finite numbers.
        """
        if not isinstance(image, list | tuple):
            return self.label(image, name)
        names = [None] * len(image) if name is None else name
        if isinstance(names, str) or len(names) != len(image):
            raise ValueError(f"there must be a name for each of {len(image)} images")
        return [self.label(one, own) for one, own in zip(image, names, strict=True)]

    def label(self, image: Source, name: str | None = None) -> Result:
        """Label one image; arguments and errors as for a call."""
        opened = self.open(image, name)
        with torch_flags(self.on_gpu):
            (prediction,) = self.segmenter.predict([opened.prepared])
        if not np.isfinite(prediction.scores).all():
            raise ValueError(f"{opened.name}: {python_names(NOT_FINITE)}")
        return self.result(opened, prediction)

    def open(self, image: Source, name: str | None = None) -> Opened:
        """Decode an image and resize it for the models; arguments as for a call.

        Raises:
            DecodeError: it is no image, damaged or too large. It is a ValueError.
            RequestError: the file cannot be read. It is a ValueError.
        """
        name = name if name is not None else name_of(image)
        try:
            with in_python():
                rgb, seed = read_rgb(image, self.max_pixels)
        except DecodeError as error:
            raise DecodeError(error.status, f"{name}: {python_names(str(error))}") from error
        return Opened(name, rgb, self.spec.inputs.prepare(rgb, seed))

    def load(self, batch: int = 1) -> Cliper:
        """Load the models.

        Args:
            batch: images that go through the models together on a GPU.

        Raises:
            ValueError: the weights do not fit the models.
        """
        with torch_flags(self.on_gpu):
            return self.spec.build(self.device or best_device(), batch)

    @cached_property
    def segmenter(self) -> Cliper:
        """The models, loaded on first use."""
        return self.load()

    @property
    def on_gpu(self) -> bool:
        """True if this process labels on a GPU."""
        return (self.device or best_device()).type == "cuda"

    def result(self, opened: Opened, prediction: Prediction) -> Result:
        """What a prediction says of its image."""
        columns = label_columns(prediction, self.spec.settings, self.spec.embeddings.background_words, self.classes)
        probabilities, refined = columns["class_probabilities"], columns["refined_classes"]
        runs = prediction.runs
        return Result(
            name=opened.name,
            classes=self.classes,
            scores=self.by_name(columns["class_scores"]),
            probabilities=None if probabilities is None else self.by_name(probabilities),
            labels=labels_from_runs(runs.starts, runs.labels, runs.image_hw).astype(np.int32),
            annotations=columns["annotations"],
            lost_to={self.classes[entry["category_id"] - 1]: entry["background"] for entry in columns["lost_to"] or ()},
            refined=None if refined is None else tuple(self.classes[label - 1] for label in refined),
            image=opened.image,
        )

    def by_name(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.classes, values.tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the loaded models."""
        return {name: value for name, value in vars(self).items() if name != "segmenter"}


def asked_settings(given: dict[str, Any]) -> dict[str, Any]:
    """A value for each setting of the method: what was given, else what the job takes.

    Raises:
        ValueError: a value is of the wrong type. TypeError: there is no such setting.
    """
    known = {setting.name: setting for setting in DECLARED}
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no setting {name!r}: choose from {', '.join(known)}")
        if value is not None:
            check_given(known[name], value)
    asked = {name: given.get(name, given_default(setting)) for name, setting in known.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}


def read_rgb(source: Source, max_pixels: int) -> tuple[Image.Image, int]:
    """An image's pixels, RGB and upright, and the seed of its noise; errors as for `Labeler.open`."""
    if isinstance(source, str | os.PathLike):
        source = parse_file("image", os.fspath(source), bytes)
    if isinstance(source, bytes):
        return decode_rgb(source, max_pixels), image_seed(source)
    if isinstance(source, np.ndarray):
        source = from_array(source)
    if not isinstance(source, Image.Image):
        raise RequestError(f"an image must be a path, URL, bytes, array or PIL image, not {type(source).__name__}")
    rgb = to_rgb(ImageOps.exif_transpose(source))
    return rgb, image_seed(rgb.tobytes())


def from_array(pixels: np.ndarray) -> Image.Image:
    """Raises RequestError: the array is of another type or shape."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in {3, 4})):
        raise RequestError(f"{ARRAY}, not {pixels.dtype} {list(pixels.shape)}")
    if not pixels.size:
        raise RequestError(f"{ARRAY}, and this one has no pixels")
    return Image.fromarray(pixels)


def name_of(source: Source) -> str:
    """The path or URL of an image that has one, else "image"."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "filename", "") or "image")


def address(given: Any) -> Any:
    """Paths as strings; everything else as it is."""
    return os.fspath(given) if isinstance(given, os.PathLike) else given


def known_device(device: str | torch.device) -> torch.device:
    """Raises ValueError: there is no such device here."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown: use cpu, cuda or None") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(found)!r} is not there: torch finds no GPU")
    return found


@contextmanager
def in_python() -> Iterator[None]:
    """Sentences about the command line's options become sentences about arguments."""
    try:
        yield
    except RequestError as error:
        raise RequestError(python_names(str(error))) from error


def python_names(sentence: str) -> str:
    """``--text-embeddings`` becomes ``text_embeddings``."""
    return FLAG.sub(lambda found: found[1].replace("-", "_"), sentence)
