"""The embeddings file: a vocabulary as vectors, in the place of a text tower.

A safetensors file with ``classes`` [queries, D] and ``background`` [B, D] in float32, rows L2-normalised, and two
metadata entries: ``classes``, a JSON list with one class name per row (a name repeats for each of its queries, on
neighbouring rows), and ``background``, a JSON list of words.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save


class EmbeddingsError(ValueError):
    """The embeddings file cannot be used; the message is one sentence."""


@dataclass(frozen=True, eq=False)
class VocabularyEmbeddings:
    """Text embeddings of a vocabulary.

    Attributes:
        classes: float32 [queries, D], L2-normalised rows.
        row_names: the class that each row is a query of.
        background: float32 [B, D], L2-normalised rows; B may be 0.
        background_words: one per row of ``background``.
    """

    classes: np.ndarray
    row_names: tuple[str, ...]
    background: np.ndarray
    background_words: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Each class once, in order of first appearance; its position plus one is its category id."""
        return tuple(dict.fromkeys(self.row_names))

    @property
    def class_of_row(self) -> list[int]:
        """For each row of ``classes`` the position of its class in ``class_names``."""
        position = {name: index for index, name in enumerate(self.class_names)}
        return [position[name] for name in self.row_names]

    @property
    def sha256(self) -> str:
        """Digest of names and numbers; equal files in another encoding have the same."""
        digest = hashlib.sha256(json.dumps([self.row_names, self.background_words]).encode("ascii"))
        for rows in (self.classes, self.background):
            digest.update(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        return digest.hexdigest()

    def select(self, names: Sequence[str]) -> "VocabularyEmbeddings":
        """The rows of some classes, in the order given.

        Raises:
            EmbeddingsError: a class is not in the file.
        """
        unknown = [name for name in names if name not in self.row_names]
        if unknown:
            raise EmbeddingsError(f"it has no class {unknown[0]!r}")
        rows = [row for name in names for row, own in enumerate(self.row_names) if own == name]
        return VocabularyEmbeddings(
            self.classes[rows], tuple(self.row_names[row] for row in rows), self.background, self.background_words
        )


def embeddings_to_bytes(embeddings: VocabularyEmbeddings) -> bytes:
    """The file's bytes."""
    tensors = {
        "classes": np.ascontiguousarray(embeddings.classes),
        "background": np.ascontiguousarray(embeddings.background),
    }
    metadata = {
        "classes": json.dumps(embeddings.row_names, ensure_ascii=False),
        "background": json.dumps(embeddings.background_words, ensure_ascii=False),
    }
    return save(tensors, metadata)


def embeddings_from_bytes(data: bytes) -> VocabularyEmbeddings:
    """Read and check an embeddings file.

    Raises:
        EmbeddingsError: not such a file, or its parts do not fit together.
    """
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        row_names, words = (tuple(json.loads(metadata[key])) for key in ("classes", "background"))
        classes, background = (tensors[key].astype(np.float32) for key in ("classes", "background"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EmbeddingsError(
            f"it is not a safetensors file with tensors and metadata named classes and background ({error!r})"
        ) from error
    check_rows("classes", classes, row_names)
    check_rows("background", background, words)
    if not row_names:
        raise EmbeddingsError("it has no class")
    if classes.shape[1] != background.shape[1]:
        raise EmbeddingsError(f"classes have {classes.shape[1]} dimensions, background has {background.shape[1]}")
    return VocabularyEmbeddings(classes, row_names, background, words)


def check_rows(what: str, rows: np.ndarray, names: tuple[object, ...]) -> None:
    """Raises EmbeddingsError unless ``rows`` is [len(names), D], finite and without a zero row."""
    if rows.ndim != 2 or len(rows) != len(names):
        raise EmbeddingsError(f"{what} has shape {list(rows.shape)} for {len(names)} names")
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise EmbeddingsError(f"{what} has an empty name")
    if not np.isfinite(rows).all() or not rows.any(axis=1).all():
        raise EmbeddingsError(f"{what} has a row that is zero or not finite")
