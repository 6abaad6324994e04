"""The vocabulary of a request: words, their embeddings, and which of them compete."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch

from cliper.examples import Examples
from cliper.files import Parsed, parse_file, parse_text
from cliper.loading import load_text_encoder
from cliper.models import ClipSpec, ModelError
from cliper.settings import Preset
from cliper.specs import best_device
from cliper.text import TEMPLATE_SETS, WORLD_WORDS, embed_phrases, parse_templates, same_meaning
from schemas.embeddings import VocabularyEmbeddings, embeddings_from_bytes
from schemas.errors import RequestError
from schemas.vocabulary import VocabularyClass, packaged_background, parse_background, parse_vocabulary

Lines = str | Sequence[str]
"""The address of a text file, or the lines of one."""
IDENTICAL = 0.999
"""Cosine from which two phrases mean the same in a smaller vocabulary."""


@dataclass(frozen=True)
class VocabularyRequest:
    """The words to look for, and the source of their embeddings.

    Attributes:
        classes: names and queries, in category order.
        background: background phrases.
        templates: prompt templates. Empty if the embeddings come from a file.
        ready: embeddings from a file. With None, CLIP's text tower makes them.
        examples: labelled images of some of the classes, or None.
    """

    classes: tuple[VocabularyClass, ...]
    background: tuple[str, ...]
    templates: tuple[str, ...]
    ready: VocabularyEmbeddings | None
    examples: Examples | None = None

    @property
    def class_names(self) -> list[str]:
        return [entry.name for entry in self.classes]

    def manifest(self) -> dict[str, object]:
        shown = {"examples_sha256": self.examples.sha256} if self.examples else {}
        return {
            "classes": [asdict(entry) for entry in self.classes],
            "background": self.background,
            "templates": self.templates,
            "embeddings_sha256": self.ready.sha256 if self.ready else None,
            **shown,
        }

    def with_examples(self, examples: Examples) -> "VocabularyRequest":
        """The same with labelled images of some of the classes.

        Raises:
            RequestError: the examples have a class that the vocabulary lacks, or lack one that has no words.
        """
        if self.ready is not None and self.ready.visual is not None:
            raise RequestError("--text-embeddings has what examples showed already: leave out --examples")
        for name in examples.names:
            if name not in self.class_names:
                raise RequestError(
                    f"--examples has class {name!r}, and the vocabulary has not: add a line {name!r}, with a colon at "
                    f"its end if it is no word"
                )
        for entry in self.classes:
            if not entry.queries and entry.name not in examples.names:
                raise RequestError(f"class {entry.name!r} has no words and no examples: give it either of them")
        return replace(self, examples=examples)

    def check_width(self, clip: ClipSpec) -> None:
        """Raises RequestError: embeddings from a file are another model's, of another width."""
        width = clip.model_cfg["embed_dim"]
        if self.ready is not None and self.ready.classes.shape[1] != width:
            raise RequestError(
                f"--text-embeddings has {self.ready.classes.shape[1]:,} dimensions, and {clip.name} needs {width:,}: "
                f"embed the words with the same model"
            )

    def embed(self, clip: ClipSpec, preset: Preset, device: torch.device | None = None) -> VocabularyEmbeddings:
        """Embed the vocabulary. Embeddings from a file stay as they are. What examples show is not in it.

        With preset ``open``, background words that mean the same as a class are left out.

        Args:
            clip: the model.
            preset: the method's.
            device: of the text tower; None for a GPU of this machine if there is one.

        Raises:
            RequestError: the text tower cannot be loaded.
        """
        embeddings = self.ready or self.embed_words(clip, device)
        if preset == "open":
            embeddings = without_synonyms(embeddings)
        return with_wordless(embeddings, self.classes)

    def embed_words(self, clip: ClipSpec, device: torch.device | None = None) -> VocabularyEmbeddings:
        """Embed all words; arguments and errors as for `embed`."""
        queries = [query for entry in self.classes for query in entry.queries]
        try:
            encode, tokenize = load_text_encoder(clip, device or best_device())
            rows = embed_phrases(encode, tokenize, [*queries, *self.background], self.templates).numpy()
        except ModelError as error:
            raise RequestError(f"--clip: {error}") from error
        return VocabularyEmbeddings(
            classes=rows[: len(queries)],
            row_names=tuple(entry.name for entry in self.classes for _ in entry.queries),
            background=rows[len(queries) :],
            background_words=self.background,
        )


def with_wordless(embeddings: VocabularyEmbeddings, classes: Sequence[VocabularyClass]) -> VocabularyEmbeddings:
    """Give every class without words a row: the mean of the background words, or of all words if these are few.

    It fits any image as any word does, so that what examples show decides.

    Args:
        embeddings: of the classes with words.
        classes: all classes, in the order to have.

    Raises:
        RequestError: there is no word at all.
    """
    missing = [entry.name for entry in classes if not entry.queries and entry.name not in embeddings.row_names]
    if not missing:
        return embeddings
    words = embeddings.background
    if len(words) < WORLD_WORDS:
        words = np.concatenate([embeddings.classes, words])
    if not len(words):
        raise RequestError("no class has words, and there are no background words: give --background some")
    row = words.mean(axis=0)
    rows = np.tile(row / np.linalg.norm(row), (len(missing), 1))
    whole = replace(
        embeddings,
        classes=np.concatenate([embeddings.classes, rows]).astype(np.float32),
        row_names=(*embeddings.row_names, *missing),
        wordless=tuple(missing),
    )
    return whole.select([entry.name for entry in classes])


def without_synonyms(embeddings: VocabularyEmbeddings) -> VocabularyEmbeddings:
    """Leave out the background words that mean the same as one of the classes' queries, by name or by embedding."""
    spoken = embeddings.select([name for name in embeddings.class_names if name not in embeddings.wordless])
    names = {name.casefold() for name in embeddings.row_names}
    synonyms = set(np.flatnonzero(meanings(spoken, spoken.background).any(axis=0)).tolist())
    words = enumerate(embeddings.background_words)
    kept = [index for index, word in words if index not in synonyms and word.casefold() not in names]
    kept_words = tuple(embeddings.background_words[index] for index in kept)
    return replace(embeddings, background=embeddings.background[kept], background_words=kept_words)


def synonymous_classes(embeddings: VocabularyEmbeddings) -> list[tuple[str, str]]:
    """Pairs of classes with queries that mean the same."""
    embeddings = embeddings.select([name for name in embeddings.class_names if name not in embeddings.wordless])
    first, second = np.nonzero(meanings(embeddings, embeddings.classes))
    names = embeddings.row_names
    pairs = ((names[i], names[j]) for i, j in zip(first, second, strict=True) if i < j and names[i] != names[j])
    return list(dict.fromkeys(pairs))


def meanings(embeddings: VocabularyEmbeddings, others: np.ndarray) -> np.ndarray:
    """Whether each of the classes' queries means the same as each of some other rows, bool [queries, others]."""
    world = np.concatenate([embeddings.classes, embeddings.background])
    if len(world) < WORLD_WORDS:
        return embeddings.classes @ others.T >= IDENTICAL
    return same_meaning(*map(torch.from_numpy, (embeddings.classes, others, world))).numpy()


def read_vocabulary(
    vocab: Lines | None, background: Lines | None, templates: Lines, text_embeddings: str | None, preset: Preset,
    wordless: bool = False,
) -> VocabularyRequest:  # fmt: skip
    """Read the vocabulary from its files or lines. The packaged background words depend on the preset.

    With an embeddings file, the vocabulary is optional. It then selects and orders classes of the embeddings.

    Args:
        vocab: the classes, see `schemas.vocabulary`.
        background: background words in the same format; ``+FILE`` adds a file's words to the packaged ones; ``none``
            for no words; None for the packaged ones.
        templates: name of a set of prompt templates, or templates.
        text_embeddings: file with embeddings, in place of those that CLIP's text tower makes.
        preset: the method's.
        wordless: classes may have no words, because there are examples. Those of an embeddings file may always.

    Raises:
        RequestError: a file or a line is missing or wrong.
    """
    if vocab is None and text_embeddings is None:
        raise RequestError("--vocab is missing: name a file with one class per line (or give --text-embeddings)")
    parse = partial(parse_vocabulary, wordless=wordless or text_embeddings is not None)
    classes = parse_lines("--vocab", vocab, parse) if vocab is not None else ()
    if text_embeddings is not None:
        if background is not None:
            raise RequestError("--background has no effect with --text-embeddings: the file has background words")
        ready = read_embeddings(text_embeddings, classes, wordless)
        classes = classes or tuple(VocabularyClass(name, (name,)) for name in ready.class_names)
        return VocabularyRequest(classes, ready.background_words, (), ready)
    return VocabularyRequest(classes, read_background(background, preset), read_templates(templates), ready=None)


def read_background(background: Lines | None, preset: Preset) -> tuple[str, ...]:
    """The background words; arguments as for `read_vocabulary`."""
    if background == "none":
        return ()
    packaged = packaged_background("world" if preset == "open" else "voc")
    if background is None:
        return packaged
    adds = isinstance(background, str) and background.startswith("+")
    source = background.removeprefix("+") if isinstance(background, str) else background
    own = parse_lines("--background", source, parse_background)
    return tuple(dict.fromkeys([*packaged, *own])) if adds else own


def read_templates(templates: Lines) -> tuple[str, ...]:
    """The prompt templates of a named set, of a file or of a list."""
    named = TEMPLATE_SETS.get(templates) if isinstance(templates, str) else None
    return named or parse_lines("--templates", templates, parse_templates)


def parse_lines(flag: str, source: Lines, parse: Callable[[str], Parsed]) -> Parsed:
    """Parse a text file, or lines that stand for one. Raises RequestError as `cliper.files.parse_file` does."""
    if isinstance(source, str):
        return parse_text(flag, source, parse)
    if not all(isinstance(line, str) for line in source):
        raise RequestError(f"{flag} must be the address of a file or a list of strings")
    try:
        return parse("\n".join(source))
    except ValueError as error:
        raise RequestError(f"{flag}: {error}") from error


def read_embeddings(address: str, classes: Sequence[VocabularyClass], wordless: bool = False) -> VocabularyEmbeddings:
    """The embeddings of a file, of these classes if there are any.

    Args:
        wordless: classes without words need no embedding.
    """

    def parse(data: bytes) -> VocabularyEmbeddings:
        embeddings = embeddings_from_bytes(data)
        known = embeddings.class_names
        wanted = [entry.name for entry in classes if entry.queries or entry.name in known or not wordless]
        return embeddings.select(wanted) if classes else embeddings

    return parse_file("--text-embeddings", address, parse)
