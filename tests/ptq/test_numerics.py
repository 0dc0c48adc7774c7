"""Codes stand for their numbers to half a scale; what is exact stays exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardbit.ptq.numerics import activation_codes, bias_codes, least_scale_for_bias, symmetric_codes, weight_codes

NONE = np.float32(0)
finite = st.floats(-1e4, 1e4, allow_nan=False, width=32)


@settings(max_examples=200, deadline=None)
@given(finite, finite, st.integers(2, 8))
def test_zero_is_a_code_and_the_range_is_covered(first: float, second: float, bits: int) -> None:
    low, high = sorted((first, second))
    codes = activation_codes(low, high, bits)
    assert codes.zero_point.dtype == np.uint8
    assert (codes.low, codes.high) == (0, 2**bits - 1)
    assert 0 <= codes.zero_point <= codes.high
    scale = float(codes.scale)
    assert np.isfinite(scale)
    assert scale >= np.finfo(np.float32).tiny
    slack = scale * 0.501
    assert (codes.low - int(codes.zero_point)) * scale <= min(low, 0) + slack
    assert (codes.high - int(codes.zero_point)) * scale >= max(high, 0) - slack
    assert codes.fills_its_type == (bits == 8)


def test_what_is_never_negative_has_zero_point_0() -> None:
    assert activation_codes(0.5, 3, 8).zero_point == 0
    assert activation_codes(0, 0, 8).scale > 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8]), st.booleans())
def test_weights_are_near_their_numbers(seed: int, bits: int, per_channel: bool) -> None:
    weights = np.random.default_rng(seed).normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    codes = weight_codes(weights, bits, np.zeros(4, np.float32), per_channel=per_channel)
    largest = 2 ** (bits - 1) - 1
    assert np.abs(codes.codes.astype(int)).max() <= largest
    scale = codes.scale[:, None, None, None]
    inside = np.abs(weights) <= scale * largest
    assert (
        np.abs(codes.codes * scale - weights)[inside] <= np.broadcast_to(scale, weights.shape)[inside] * 0.5001
    ).all()
    if bits == 8:
        assert inside.mean() > 0.99
    assert (len(np.unique(codes.scale)) == 1) == (not per_channel)


@pytest.mark.parametrize(("values", "bits"), [([-1, 1], 1), ([-1, 0, 1], 2)])
def test_binary_and_ternary_weights_are_exact(values: list[int], bits: int) -> None:
    rng = np.random.default_rng(0)
    weights = (rng.choice(values, (5, 30)) * rng.uniform(0.01, 1, (5, 1))).astype(np.float32)
    codes = weight_codes(weights, 8, np.zeros(5, np.float32))
    np.testing.assert_array_equal(codes.codes * codes.scale[:, None], weights)
    assert codes.bits == bits


def test_a_channel_of_zeros_and_one_of_next_to_nothing_have_usual_scales() -> None:
    weights = np.ones((3, 10), np.float32) * np.arange(1, 11, dtype=np.float32)
    weights[1], weights[2] = 0, 1e-38
    codes = weight_codes(weights, 8, np.zeros(3, np.float32))
    assert codes.scale[1] == codes.scale[2] == codes.scale[0]
    assert not codes.codes[1:].any()


def test_biases_fit_their_accumulator_whatever_the_weights() -> None:
    weights = np.full((2, 4), 1e-6, np.float32) * np.arange(1, 5, dtype=np.float32)
    bias = np.array([1000, -1000], np.float32)
    codes = weight_codes(weights, 8, least_scale_for_bias(bias, np.float32(1e-3)))
    counts, unit = bias_codes(bias, np.float32(1e-3), codes.scale)
    np.testing.assert_allclose(counts * unit.astype(np.float64), bias, rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("low", "high"), [(0, 3), (-1, 3), (-5, 0.5), (-128 / 256, 127 / 256), (0, 0)])
def test_symmetric_codes_fit_int8_and_hold_the_range(low, high, bits):
    codes = symmetric_codes(low, high, bits)
    assert int(codes.zero_point) == 0
    assert -128 <= codes.low <= codes.high <= 127
    assert codes.low * float(codes.scale) <= low * (1 - 1e-6)
    assert codes.high * float(codes.scale) >= high * (1 - 1e-6)
    assert codes.bits == (bits if low < 0 else min(bits, 7))
    used = max(low / min(codes.low, -1), high / codes.high)
    assert used == pytest.approx(float(codes.scale)) or (low, high) == (0, 0)


def test_symmetric_codes_of_the_image_are_its_bytes_less_128():
    assert float(symmetric_codes(-128 / 256, 127 / 256, 8).scale) == 1 / 256
