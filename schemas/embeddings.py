"""The embeddings file: a vocabulary as vectors, used instead of a text tower.

A safetensors file with two float32 tensors, ``classes`` [queries, D] and ``background`` [B, D]. Their rows are
L2-normalised. There are two metadata entries. ``classes`` is a JSON list with one class name per row: a class with
several queries has several neighbouring rows. ``background`` is a JSON list of words.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save


@dataclass(frozen=True, eq=False)
class VocabularyEmbeddings:
    """Text embeddings of a vocabulary.

    Attributes:
        classes: float32 [queries, D], L2-normalised rows.
        row_names: the class of each row.
        background: float32 [B, D], L2-normalised rows; B may be 0.
        background_words: one per row of ``background``.
    """

    classes: np.ndarray
    row_names: tuple[str, ...]
    background: np.ndarray
    background_words: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Each class once, in order of first appearance. Its position plus one is its category id."""
        return tuple(dict.fromkeys(self.row_names))

    @property
    def class_of_row(self) -> list[int]:
        """For each row of ``classes``, the position of its class in ``class_names``."""
        position = {name: index for index, name in enumerate(self.class_names)}
        return [position[name] for name in self.row_names]

    @property
    def sha256(self) -> str:
        """Digest of the names and vectors. It does not depend on the encoding of the file."""
        digest = hashlib.sha256(json.dumps([self.row_names, self.background_words]).encode("ascii"))
        for rows in (self.classes, self.background):
            digest.update(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        return digest.hexdigest()

    def select(self, names: Sequence[str]) -> "VocabularyEmbeddings":
        """Select the rows of some classes, in the given order.

        Raises:
            ValueError: a class is not in the file.
        """
        unknown = [name for name in names if name not in self.row_names]
        if unknown:
            raise ValueError(f"it has no class {unknown[0]!r}")
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
        ValueError: it is not an embeddings file, or its parts do not match. The message is one sentence.
    """
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        row_names, words = (tuple(json.loads(metadata[key])) for key in ("classes", "background"))
        classes, background = (tensors[key].astype(np.float32) for key in ("classes", "background"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"it is not a safetensors file with tensors and metadata named classes and background ({error!r})"
        ) from error
    check_rows("classes", classes, row_names)
    check_rows("background", background, words)
    if not row_names:
        raise ValueError("it has no class")
    if classes.shape[1] != background.shape[1]:
        raise ValueError(f"classes have {classes.shape[1]} dimensions, background has {background.shape[1]}")
    return VocabularyEmbeddings(normalized(classes), row_names, normalized(background), words)


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1. Rows that have it already, up to rounding, stay as they are to the last bit."""
    # In float32 the squares of values above 1e19 overflow and those below 1e-23 vanish.
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.where(np.abs(norms - 1) < 1e-3, rows, rows / norms).astype(np.float32)


def check_rows(what: str, rows: np.ndarray, names: tuple[object, ...]) -> None:
    """Raises ValueError unless ``rows`` is [len(names), D], finite and without a zero row."""
    if rows.ndim != 2 or len(rows) != len(names):
        raise ValueError(f"{what} has shape {list(rows.shape)} for {len(names)} names")
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{what} has an empty name")
    if not np.isfinite(rows).all() or not rows.any(axis=1).all():
        raise ValueError(f"{what} has a row that is zero or not finite")
