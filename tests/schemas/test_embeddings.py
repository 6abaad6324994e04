import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from schemas.embeddings import VisualQueries, VocabularyEmbeddings, embeddings_from_bytes, embeddings_to_bytes


def some_embeddings(background: int = 2) -> VocabularyEmbeddings:
    rows = np.random.default_rng(0).normal(size=(3 + background, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    words = tuple(f"word {i}" for i in range(background))
    return VocabularyEmbeddings(rows[:3], ("cat", "dög", "dög"), rows[3:], words)


@pytest.mark.parametrize("background", [0, 2])
def test_round_trip(background: int) -> None:
    before = some_embeddings(background)
    after = embeddings_from_bytes(embeddings_to_bytes(before))
    assert np.array_equal(after.classes, before.classes)
    assert np.array_equal(after.background, before.background)
    assert after.row_names == before.row_names
    assert after.background_words == before.background_words
    assert after.sha256 == before.sha256


def test_queries_of_a_class_share_its_position() -> None:
    embeddings = some_embeddings()
    assert embeddings.class_names == ("cat", "dög")
    assert embeddings.class_of_row == [0, 1, 1]


def test_select_orders_classes_and_keeps_their_queries() -> None:
    chosen = some_embeddings().select(["dög", "cat"])
    assert chosen.row_names == ("dög", "dög", "cat")
    assert np.array_equal(chosen.classes, some_embeddings().classes[[1, 2, 0]])
    with pytest.raises(ValueError, match="no class 'cow'"):
        some_embeddings().select(["cow"])


def test_digest_sees_names_and_numbers() -> None:
    original = some_embeddings()
    renamed = VocabularyEmbeddings(original.classes, ("a", "b", "b"), original.background, original.background_words)
    changed = VocabularyEmbeddings(
        -original.classes, original.row_names, original.background, original.background_words
    )
    assert len({original.sha256, renamed.sha256, changed.sha256}) == 3


GOOD = {"classes": np.eye(2, 4, dtype=np.float32), "background": np.eye(1, 4, dtype=np.float32)}
NAMES = {"classes": json.dumps(["a", "b"]), "background": json.dumps(["sky"])}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (GOOD, {}, "metadata named classes and background"),
        (GOOD, NAMES | {"classes": "not json"}, "metadata named classes and background"),
        (GOOD, NAMES | {"classes": json.dumps(["a"])}, r"classes has shape \[2, 4\] for 1 names"),
        (GOOD, NAMES | {"classes": json.dumps(["a", " "])}, "classes has an empty name"),
        (GOOD | {"classes": np.zeros((2, 4), np.float32)}, NAMES, "zero or not finite"),
        (GOOD | {"classes": np.full((2, 4), np.nan, np.float32)}, NAMES, "zero or not finite"),
        (GOOD | {"background": np.eye(1, 5, dtype=np.float32)}, NAMES, "4 dimensions, background has 5"),
        ({"classes": GOOD["classes"]}, NAMES, "tensors and metadata"),
        (
            GOOD | {"classes": np.zeros((0, 4), np.float32)},
            NAMES | {"classes": "[]"},
            "it has no class",
        ),
    ],
)
def test_wrong_files_are_refused(tensors: dict[str, np.ndarray], metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embeddings_from_bytes(save(tensors, metadata))


@pytest.mark.parametrize("size", [1e-45, 1e-30, 0.5, 3e38])
def test_rows_of_any_size_get_length_one(size: float) -> None:
    rows = np.full((2, 4), size, np.float32)
    embeddings = embeddings_from_bytes(save(GOOD | {"classes": rows}, NAMES))
    assert np.allclose(embeddings.classes, 0.5)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        embeddings_from_bytes(data)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damaged_files_are_read_or_refused(position: int, garbage: bytes) -> None:
    data = bytearray(embeddings_to_bytes(some_embeddings()))
    data[position : position + len(garbage)] = garbage
    try:
        embeddings_from_bytes(bytes(data))
    except ValueError:
        return


def with_visual() -> VocabularyEmbeddings:
    rows = np.random.default_rng(1).normal(size=(3, 2, 4)).astype(np.float32)
    visual = VisualQueries(("dög", "cat"), rows, np.float32([0.5, -2]))
    return replace(some_embeddings(), visual=visual, wordless=("cat",))


def test_round_trip_with_examples() -> None:
    before = with_visual()
    after = embeddings_from_bytes(embeddings_to_bytes(before))
    assert before.visual is not None
    assert after.visual is not None
    assert after.visual.names == before.visual.names
    assert np.array_equal(after.visual.rows, before.visual.rows)
    assert np.array_equal(after.visual.offsets, before.visual.offsets)
    assert after.wordless == ("cat",)
    assert after.sha256 == before.sha256 != some_embeddings().sha256
    louder = replace(before, visual=replace(before.visual, offsets=before.visual.offsets * 2))
    assert louder.sha256 != before.sha256


def test_select_keeps_what_examples_show() -> None:
    chosen = with_visual().select(["cat"])
    assert chosen.visual is not None
    assert chosen.visual.names == chosen.wordless == ("cat",)
    assert chosen.visual.offsets.tolist() == [-2]
    other = replace(with_visual(), visual=with_visual().visual.select(["cat"]), wordless=()).select(["dög"])  # type: ignore[union-attr]
    assert other.visual is None


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"visual": np.zeros((3, 1, 4), np.float32)}, {}, r"visual has shape \[3, 1, 4\] for 2 classes of 4"),
        ({"visual": np.zeros((0, 2, 4), np.float32)}, {}, "visual has shape"),
        ({"visual_offsets": np.zeros(3, np.float32)}, {}, r"visual_offsets has shape \[3\] for 2 classes"),
        ({"visual": np.full((3, 2, 4), np.inf, np.float32)}, {}, "not finite"),
        ({}, {"visual": json.dumps(["a", "a"])}, "twice, or one that it does not have"),
        ({}, {"visual": json.dumps(["a", ["b"]])}, "twice, or one that it does not have"),
        ({}, {"wordless": json.dumps(["c"])}, "twice, or one that it does not have"),
        ({}, {"wordless": "5"}, "tensors and metadata"),
    ],
)
def test_wrong_visual_queries_are_refused(
    tensors: dict[str, np.ndarray], metadata: dict[str, str], message: str
) -> None:
    good = {"visual": np.zeros((3, 2, 4), np.float32), "visual_offsets": np.zeros(2, np.float32)}
    names = {"visual": json.dumps(["a", "b"]), "wordless": "[]"}
    assert embeddings_from_bytes(save(GOOD | good, NAMES | names)).visual is not None
    with pytest.raises(ValueError, match=message):
        embeddings_from_bytes(save(GOOD | good | tensors, NAMES | names | metadata))
