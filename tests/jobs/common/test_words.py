"""Which words of a vocabulary compete with each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cliper.coarse import Queries
from cliper.text import WORLD_WORDS
from jobs.common.request import synonymous_classes, without_synonyms
from schemas.embeddings import VocabularyEmbeddings

DIMENSIONS = 24


def random_rows(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32)
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


def test_a_background_word_with_the_name_of_a_class_is_left_out_whatever_its_embedding() -> None:
    words = ["Class 1", "another"]
    kept = without_synonyms(vocabulary(random_rows(2, 0), random_rows(2, 1), words))
    assert kept.background_words == ("another",)
    assert len(kept.background) == 1


def test_classes_that_mean_the_same_are_named_once() -> None:
    rows = random_rows(3, 0)
    rows[2] = rows[0]
    assert synonymous_classes(vocabulary(rows, random_rows(4, 1))) == [("class 0", "class 2")]
