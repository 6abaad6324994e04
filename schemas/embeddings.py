"""The embeddings file: a vocabulary as vectors, used instead of a text tower.

A safetensors file with two float32 tensors, ``classes`` [queries, D] and ``background`` [B, D]. Their rows are
L2-normalised. There are two metadata entries. ``classes`` is a JSON list with one class name per row: a class with
several queries has several neighbouring rows. ``background`` is a JSON list of words.

A vocabulary with examples also has the tensors ``visual`` [last features, V, D] and ``visual_offsets`` [V], see
`VisualQueries`, and the metadata ``visual``, a JSON list of V class names, and ``wordless``, one of classes that are
known by examples alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save


@dataclass(frozen=True, eq=False)
class VisualQueries:
    """What examples show of classes: a linear function of a patch's features, in logits.

    With x the L2-normalised last features of a patch, ``sum(x[k] @ rows[k, c]) + offsets[c]`` is added to the logits of
    class c.

    Attributes:
        names: the classes with examples.
        rows: float32 [last features, V, D].
        offsets: float32 [V].
    """

    names: tuple[str, ...]
    rows: np.ndarray
    offsets: np.ndarray

    def select(self, names: Sequence[str]) -> "VisualQueries | None":
        """Those of some classes, in the given order; None if none of them has examples."""
        kept = [self.names.index(name) for name in names if name in self.names]
        if not kept:
            return None
        return VisualQueries(tuple(self.names[i] for i in kept), self.rows[:, kept], self.offsets[kept])


@dataclass(frozen=True, eq=False)
class VocabularyEmbeddings:
    """Text embeddings of a vocabulary, and what examples show of its classes.

    Attributes:
        classes: float32 [queries, D], L2-normalised rows.
        row_names: the class of each row.
        background: float32 [B, D], L2-normalised rows; B may be 0.
        background_words: one per row of ``background``.
        visual: None without examples.
        wordless: the classes without words. Their rows say what any word says of an image.
    """

    classes: np.ndarray
    row_names: tuple[str, ...]
    background: np.ndarray
    background_words: tuple[str, ...]
    visual: VisualQueries | None = None
    wordless: tuple[str, ...] = ()

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
        if self.visual is not None:
            digest.update(json.dumps([self.visual.names, self.wordless]).encode("ascii"))
            for values in (self.visual.rows, self.visual.offsets):
                digest.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
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
        return replace(
            self,
            classes=self.classes[rows],
            row_names=tuple(self.row_names[row] for row in rows),
            visual=self.visual.select(names) if self.visual else None,
            wordless=tuple(name for name in names if name in self.wordless),
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
    if (visual := embeddings.visual) is not None:
        tensors |= {
            "visual": np.ascontiguousarray(visual.rows),
            "visual_offsets": np.ascontiguousarray(visual.offsets),
        }
        metadata |= {
            "visual": json.dumps(visual.names, ensure_ascii=False),
            "wordless": json.dumps(embeddings.wordless, ensure_ascii=False),
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
        visual, wordless = read_visual(tensors, metadata)
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
    if visual is not None:
        check_visual(visual, wordless, row_names, classes.shape[1])
    return VocabularyEmbeddings(normalized(classes), row_names, normalized(background), words, visual, wordless)


def read_visual(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[VisualQueries | None, tuple[str, ...]]:
    """The visual queries of a file that has some, and the classes without words."""
    if "visual" not in tensors:
        return None, ()
    names, wordless = (tuple(json.loads(metadata[key])) for key in ("visual", "wordless"))
    rows, offsets = (tensors[key].astype(np.float32) for key in ("visual", "visual_offsets"))
    return VisualQueries(names, rows, offsets), wordless


def check_visual(visual: VisualQueries, wordless: tuple[str, ...], row_names: tuple[str, ...], dimensions: int) -> None:
    """Raises ValueError: visual queries do not go with the classes, or have values that are not finite."""
    rows, names = visual.rows, visual.names
    if rows.ndim != 3 or not len(rows) or rows.shape[1:] != (len(names), dimensions):
        raise ValueError(f"visual has shape {list(rows.shape)} for {len(names)} classes of {dimensions} dimensions")
    if visual.offsets.shape != (len(names),):
        raise ValueError(f"visual_offsets has shape {list(visual.offsets.shape)} for {len(names)} classes")
    known = all(name in row_names for name in names) and all(name in names for name in wordless)
    if not known or len(set(names)) < len(names):
        raise ValueError("visual or wordless names a class twice, or one that it does not have")
    if not (np.isfinite(rows).all() and np.isfinite(visual.offsets).all()):
        raise ValueError("visual has a value that is not finite")


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
