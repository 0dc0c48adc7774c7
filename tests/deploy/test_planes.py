"""The shortest step onto a plane in a box: against bisection, against the conditions of optimality, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardbit_deploy.attacks.planes import distance_to_plane, step_to_plane, visible


def case(seed: int, values: int, extreme: bool):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, values).astype(np.float32)
    if extreme:
        pixels = np.where(rng.random(values) < 0.6, rng.choice([0, 255], values), pixels).astype(np.float32)
    slopes = (rng.normal(size=values) * (rng.random(values) < 0.9)).astype(np.float32)
    return pixels, slopes


def most(pixels, slopes, sign: float) -> float:
    """What can be gained in the whole box."""
    room = np.where(slopes * sign > 0, 255 - pixels, pixels)
    return float((np.abs(slopes) * room).sum(dtype=np.float64))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans(), st.floats(0.01, 0.99), st.sampled_from([-1.0, 1.0]))
def test_in_linf_no_smaller_box_meets_the_plane(seed, values, extreme, share, sign):
    """What a box of half-width t can gain rises with t: the least one that can gain enough is found by bisection."""
    pixels, slopes = case(seed, values, extreme)
    missing = sign * share * most(pixels, slopes, sign)
    step = step_to_plane("linf", slopes[None], np.array([missing]), pixels[None])[0]
    assert ((pixels + step >= 0) & (pixels + step <= 255)).all()
    np.testing.assert_allclose(slopes.astype(float) @ step, missing, rtol=1e-4, atol=1e-3)
    if missing == 0:
        assert not step.any()
        return
    room = np.where(slopes * sign > 0, 255 - pixels, pixels).astype(float)
    low, high = 0.0, 255.0
    for _ in range(60):
        middle = (low + high) / 2
        enough = np.abs(slopes.astype(float)) @ np.minimum(room, middle) >= abs(missing)
        low, high = (low, middle) if enough else (middle, high)
    assert np.abs(step).max() == pytest.approx(high, rel=1e-3, abs=1e-2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans(), st.floats(0.01, 0.99), st.sampled_from([-1.0, 1.0]))
def test_in_l2_values_that_are_not_stopped_follow_the_slope(seed, values, extreme, share, sign):
    """The conditions of Karush, Kuhn and Tucker, which have one solution: free values are one multiple of the slope,
    and stopped ones would have to go further to be so."""
    pixels, slopes = case(seed, values, extreme)
    missing = sign * share * most(pixels, slopes, sign)
    step = step_to_plane("l2", slopes[None], np.array([missing]), pixels[None])[0].astype(float)
    np.testing.assert_allclose(slopes.astype(float) @ step, missing, rtol=1e-4, atol=1e-3)
    room = np.where(slopes * sign > 0, 255 - pixels, pixels)
    free = (np.abs(step) < room) & (slopes != 0)
    assert not step[slopes == 0].any()
    if free.any():
        multiple = step[free] / slopes[free]
        np.testing.assert_allclose(multiple, multiple[0], rtol=1e-4)
        stopped = ~free & (slopes != 0)
        assert (np.abs(step[stopped]) <= np.abs(multiple[0] * slopes[stopped]) * 1.0001 + 1e-4).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("unit", [1e-38, 1e-20, 1.0, 1e20])
def test_units_do_not_matter(norm, unit):
    pixels, slopes = case(3, 30, True)
    missing = np.array([0.2 * most(pixels, slopes, 1.0)])
    plain = step_to_plane(norm, slopes[None], missing, pixels[None])
    scaled = step_to_plane(norm, (slopes * unit).astype(np.float32)[None], missing * unit, pixels[None])
    np.testing.assert_allclose(scaled, plain, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plane_outside_of_the_box_is_approached_as_far_as_can_be(norm):
    pixels, slopes = case(4, 20, False)
    step = step_to_plane(norm, slopes[None], np.array([10 * most(pixels, slopes, 1.0)]), pixels[None])[0]
    expected = np.where(slopes > 0, 255 - pixels, np.where(slopes < 0, -pixels, 0))
    np.testing.assert_array_equal(step, expected)


def test_a_step_is_long_enough_to_change_a_byte():
    steps = np.array([[0.1, -0.01], [-3, 0.2], [0, 0], [0, 1e-20]], np.float32)
    expected = [[0.51, -0.051], [-3, 0.2], [0, 0], [0, 0.51]]
    np.testing.assert_allclose(visible(steps), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rows_without_a_slope_stay(norm):
    slopes = np.array([[0, 0], [np.nan, np.inf], [1, 1]], np.float32)
    pixels = np.full((3, 2), 100, np.float32)
    with np.errstate(all="raise", under="ignore"):
        step = step_to_plane(norm, slopes, np.array([5.0, 5.0, 0.0]), pixels)
        distances = distance_to_plane(norm, slopes, np.array([5.0, 5.0, 6.0]))
    assert not step.any()
    np.testing.assert_allclose(distances, [np.inf, np.inf, 3.0 if norm == "linf" else 6 / np.sqrt(2)])
