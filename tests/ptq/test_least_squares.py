"""The scale of least squared error, against trying all."""

from __future__ import annotations

import numpy as np
import pytest

from hardbit.ptq.least_squares import least_squares_range, least_squares_weight_scale


def squared_error(numbers: np.ndarray, scale: float, low: int, high: int) -> float:
    return float(np.square(np.clip(np.rint(numbers / scale), low, high) * scale - numbers).sum())


@pytest.mark.parametrize("levels", [4, 16, 64])
def test_the_range_of_rectified_numbers_is_the_best_of_a_fine_search(levels: int) -> None:
    numbers = np.abs(np.random.default_rng(levels).normal(0, 1, 20000))
    counts, edges = np.histogram(numbers, 2048, range=(-numbers.max(), numbers.max()))
    low, high = least_squares_range(counts, edges, levels)
    assert low == 0
    found = squared_error(numbers, high / (levels - 1), 0, levels - 1)
    best = min(
        squared_error(numbers, end / (levels - 1), 0, levels - 1) for end in np.linspace(0.1, numbers.max(), 800)
    )
    assert found <= 1.02 * best


def test_each_side_has_an_end_of_its_own() -> None:
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.uniform(-1, 0, 20000), rng.uniform(0, 4, 20000), [30.0]])
    counts, edges = np.histogram(numbers, 4096, range=(-30, 30))
    low, high = least_squares_range(counts, edges, 16)  # at 256 levels the lone 30 would be worth keeping
    assert -1.5 < low < -0.5
    assert 3 < high < 6


def test_an_empty_histogram_has_no_range() -> None:
    assert least_squares_range(np.zeros(8, np.int64), np.linspace(-1, 1, 9), 16) == (0.0, 0.0)


@pytest.mark.parametrize("largest", [1, 3, 7])
def test_the_weight_scale_of_each_channel_is_the_best_of_a_fine_search(largest: int) -> None:
    weights = np.random.default_rng(largest).normal(0, [[0.1], [2.0], [0.5]], (3, 400)).astype(np.float32)
    scales = least_squares_weight_scale(weights, largest)
    for row, scale in zip(weights, scales, strict=True):
        best = min(
            squared_error(row, s, -largest, largest) for s in np.linspace(0.15, 1, 1000) * np.abs(row).max() / largest
        )
        assert squared_error(row, float(scale), -largest, largest) <= 1.01 * best
