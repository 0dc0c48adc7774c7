"""Scales and the marks on their axes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardbit.report.charts.scale import LinearScale, LogScale, linear_ticks, log_ticks


def test_a_linear_scale_maps_ends_to_ends_and_keeps_proportions() -> None:
    x = LinearScale(10.0, 20.0, 100.0, 300.0)
    assert (x(10.0), x(12.5), x(20.0)) == (100.0, 150.0, 300.0)
    assert (x.clamped(0.0), x.clamped(99.0)) == (100.0, 300.0)


def test_a_logarithmic_scale_gives_equal_ratios_equal_room() -> None:
    x = LogScale(0.1, 10.0, 0.0, 200.0)
    assert x(1.0) == pytest.approx(100.0)
    assert x(2.0) - x(1.0) == pytest.approx(x(0.4) - x(0.2))


@pytest.mark.parametrize(
    ("low", "high", "about", "ticks"),
    [
        (0.0, 128.0, 7, [0, 20, 40, 60, 80, 100, 120]),
        (0.0, 1.0, 5, [0, 0.25, 0.5, 0.75, 1.0]),
        (0.21, 0.33, 4, [0.25, 0.3]),
    ],
)
def test_axes_are_marked_at_round_numbers(low: float, high: float, about: int, ticks: list[float]) -> None:
    assert linear_ticks(low, high, about) == pytest.approx(ticks)


@given(
    low=st.floats(-1e6, 1e6, allow_nan=False),
    span=st.floats(1e-6, 1e6, allow_nan=False),
    about=st.integers(2, 12),
)
def test_marks_lie_on_the_axis_in_order_and_are_not_too_many(low: float, span: float, about: int) -> None:
    high = low + span
    ticks = linear_ticks(low, high, about)
    slack = 1e-6 * max(span, abs(low) * 1e-6)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert ticks == sorted(ticks)
    assert len(ticks) <= about


@given(low=st.floats(1e-4, 1e3), ratio=st.floats(1.5, 1e4))
def test_logarithmic_marks_are_1_2_and_5_of_a_decade(low: float, ratio: float) -> None:
    for tick in log_ticks(low, low * ratio):
        assert low * 0.999 <= tick <= low * ratio * 1.001
        mantissa = tick / 10 ** math.floor(math.log10(tick) + 1e-9)
        assert any(mantissa == pytest.approx(step) for step in (1, 2, 5))


def test_an_axis_without_length_has_one_mark() -> None:
    assert linear_ticks(3.0, 3.0, 5) == [3.0]
