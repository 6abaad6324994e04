"""The least time of a stage follows from its counts and the device's rates."""

import pytest

from benchmarks.roofline import CountedCase, Floor, Rates, count_apart, floors, measure_rates


def test_the_slower_of_arithmetic_and_bytes_is_the_floor() -> None:
    stages = {"a": {"tflop_an_image": 2.0, "gb_an_image": 1.0}, "b": {"tflop_an_image": 0.0, "gb_an_image": 3.0}}
    found = floors({"stages": stages}, Rates(flop_per_s=400e12, bytes_per_s=2e12))
    assert found["a"] == pytest.approx(Floor(5.0, 0.5, 5.0))
    assert found["b"] == pytest.approx(Floor(0.0, 1.5, 1.5))
    assert found["total"] == pytest.approx(Floor(5.0, 2.0, 6.5)), "stages come one after the other"


def test_rates_of_this_machine_are_rates() -> None:
    rates = measure_rates("cpu", "fp32")
    assert 1e9 < rates.flop_per_s < 1e15
    assert 1e8 < rates.bytes_per_s < 1e13


@pytest.mark.slow
def test_without_kernels_more_bytes_are_moved() -> None:
    half, single = (CountedCase("demo", "product", 1, 5, (96, 128), precision) for precision in ("fp16", "fp32"))
    found = count_apart([half, single])
    moved = [found[case]["stages"]["compensation"]["gb_an_image"] for case in (half, single)]
    assert 0 < 4 * moved[0] < moved[1]
