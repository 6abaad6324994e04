"""One trial of every kind; `make faults` runs many and writes docs/reliability.md."""

import os
import random

import pytest

from tests.faults.trials import KINDS, Bench, prepare

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.xdist_group("faults")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return prepare(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_has_one_row_whatever_dies(kind: str, bench: Bench) -> None:
    trial, _ = KINDS[kind]
    if kind == "disk full" and os.geteuid():
        pytest.skip("only root may mount a small disk")
    outcome = trial(bench, 0, random.Random(kind))
    assert outcome.clean, outcome
