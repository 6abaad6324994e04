"""A short look at every fuzz target: the inputs to begin with, cut and changed by hypothesis."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_to_begin_with(target: str) -> None:
    for data in seeds(target):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=200)
@given(st.data())
def test_cut_and_changed_inputs(target: str, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(seeds(target)))
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 5)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    TARGETS[target](bytes(changed))
