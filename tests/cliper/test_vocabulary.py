"""Which words of a vocabulary compete with each other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cliper.coarse import Queries
from cliper.examples import Examples
from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.pipeline import Cliper
from cliper.settings import VIT_B_16, MethodSettings
from cliper.specs import build_queries
from cliper.text import WORLD_WORDS
from cliper.vocabulary import read_vocabulary, synonymous_classes, with_wordless, without_synonyms
from cluster.encoders import AnnotationEncoder
from schemas.embeddings import VisualQueries, VocabularyEmbeddings, embeddings_to_bytes
from schemas.errors import RequestError
from schemas.vocabulary import VocabularyClass
from tests.support.stages import prepare


def random_rows(count: int, seed: int, dimensions: int = 24) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vocabulary(classes: np.ndarray, background: np.ndarray, words: list[str] | None = None) -> VocabularyEmbeddings:
    names = tuple(f"class {number}" for number in range(len(classes)))
    return VocabularyEmbeddings(
        classes, names, background, tuple(words or [f"word {number}" for number in range(len(background))])
    )


@pytest.mark.parametrize("size", [5, 2 * WORLD_WORDS])
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_classes_among_the_background_change_nothing(size: int, seed: int) -> None:
    classes, background = random_rows(3, seed), random_rows(size, seed + 1)
    alone = without_synonyms(vocabulary(classes, background))
    among = without_synonyms(vocabulary(classes, np.concatenate([classes[:2], background, classes[2:]])))
    ours, theirs = (
        Queries.build_open(torch.from_numpy(of.classes), torch.from_numpy(of.background), torch.tensor(of.class_of_row))
        for of in (alone, among)
    )
    assert torch.equal(ours.rows, theirs.rows)
    assert torch.equal(ours.head_start, theirs.head_start)


@pytest.mark.parametrize("size", [5, 2 * WORLD_WORDS])
def test_rows_are_the_same_with_the_classes_among_the_background(size: int, tiny_clip: Path) -> None:
    tower = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), torch.device("cpu"), torch.float32)
    chosen = {"preset": "open", "compensation": "guided", "shorter_side_px": 112, "presence_midpoint": 0.02}
    settings = MethodSettings(**vars(VIT_B_16) | chosen)
    width = tower.model.proj.shape[1]
    classes, background = random_rows(3, 0, width), random_rows(size, 1, width)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    rows = []
    for words in (background, np.concatenate([classes[:2], background, classes[2:]])):
        names = [f"word {np.flatnonzero((background == row).all(axis=1)).tolist()}" for row in words]
        embeddings = without_synonyms(vocabulary(classes, words, names))
        cliper = Cliper(tower, build_queries(embeddings, "open"), settings)
        prediction = cliper.predict(prepare(cliper.inputs, [pixels], [0]))[0]
        row = AnnotationEncoder(settings, embeddings.background_words, ["a", "b", "c"]).encode({}, prediction, 0.0)
        rows.append(pa.Table.from_pylist([row]).to_pylist())
    assert rows[0] == rows[1]
    assert rows[0][0]["annotations"]


def test_a_background_word_with_the_name_of_a_class_is_left_out_whatever_its_embedding() -> None:
    words = ["Class 1", "another"]
    kept = without_synonyms(vocabulary(random_rows(2, 0), random_rows(2, 1), words))
    assert kept.background_words == ("another",)
    assert len(kept.background) == 1


def test_classes_that_mean_the_same_are_named_once() -> None:
    rows = random_rows(3, 0)
    rows[2] = rows[0]
    assert synonymous_classes(vocabulary(rows, random_rows(4, 1))) == [("class 0", "class 2")]


CLASSES = (VocabularyClass("x", ()), VocabularyClass("class 0", ("class 0",)), VocabularyClass("y", ()))


@pytest.mark.parametrize("size", [5, 2 * WORLD_WORDS])
def test_a_class_without_words_has_the_mean_of_the_words(size: int) -> None:
    spoken = vocabulary(random_rows(1, 0), random_rows(size, 1))
    found = with_wordless(spoken, CLASSES)
    assert found.class_names == ("x", "class 0", "y")
    assert found.wordless == ("x", "y")
    words = spoken.background if size >= WORLD_WORDS else np.concatenate([spoken.classes, spoken.background])
    mean = words.mean(axis=0)
    assert np.allclose(found.classes[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.array_equal(found.classes[0], found.classes[2])
    assert synonymous_classes(found) == [], "that two classes have no words does not make them one"
    assert without_synonyms(found).background_words == spoken.background_words


def test_without_any_word_there_is_nothing_to_compare_with() -> None:
    nothing = vocabulary(random_rows(0, 0), random_rows(0, 0))
    with pytest.raises(RequestError, match="no class has words"):
        with_wordless(nothing, CLASSES[:1])


def test_classes_and_examples_must_go_together(tmp_path: Path) -> None:
    words = read_vocabulary(["cat", "thing:"], "none", "car", None, "open", wordless=True)
    assert words.with_examples(Examples(("thing",), (), "0")).manifest()["examples_sha256"] == "0"
    assert "examples_sha256" not in words.manifest()
    with pytest.raises(RequestError, match="class 'thing' has no words and no examples"):
        words.with_examples(Examples(("cat",), (), "0"))
    with pytest.raises(RequestError, match="--examples has class 'dog', and the vocabulary has not: add a line 'dog'"):
        words.with_examples(Examples(("thing", "dog"), (), "0"))
    with pytest.raises(RequestError, match="line 2: class 'thing' has an empty query"):
        read_vocabulary(["cat", "thing:"], "none", "car", None, "open")


def test_an_embeddings_file_brings_its_examples(tmp_path: Path) -> None:
    visual = VisualQueries(("x",), np.ones((2, 1, 24), np.float32), np.ones(1, np.float32))
    embeddings = with_wordless(vocabulary(random_rows(1, 0), random_rows(5, 1)), CLASSES[:2])
    file = tmp_path / "vocabulary.safetensors"
    file.write_bytes(embeddings_to_bytes(replace(embeddings, visual=visual)))
    for vocab in (None, ["class 0", "x:"]):
        words = read_vocabulary(vocab, None, "car", str(file), "open")
        assert words.ready is not None
        assert words.ready.visual is not None
        assert words.ready.wordless == ("x",)
        with pytest.raises(RequestError, match="has what examples showed already"):
            words.with_examples(Examples(("x",), (), "0"))
    with pytest.raises(RequestError, match="it has no class 'y'"):
        read_vocabulary(["class 0", "y:"], None, "car", str(file), "open")
    more = read_vocabulary(["class 0", "y:"], None, "car", str(file), "open", wordless=True)
    assert more.ready is not None
    assert more.ready.class_names == ("class 0",)
