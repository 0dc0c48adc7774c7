"""Calibrators against what they are defined to be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from float_networks import FloatBuilder
from hardbit.ptq.ranges import PERCENTILE, calibrated_ranges

LEVELS = 256


def with_gain(gain: float) -> onnx.ModelProto:
    """A network whose tensor `gain.out` is `gain` times the image."""
    b = FloatBuilder()
    x = b.node("Mul", ["image", b.constant("factor", np.float32(gain))], "gain")
    return b.model(b.gemm(b.node("Flatten", [x], "flatten", axis=1), "fc", 768, 10))


def images(count: int = 100, seed: int = 0) -> np.ndarray:
    """Bell-shaped pixels, and a few at the very ends."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal(128, 12, (count, 3, 16, 16)).round(), 0, 255).astype(np.uint8)
    pixels[0, 0, 0, :2] = 0, 255
    return pixels


def values(pixels: np.ndarray, gain: float) -> np.ndarray:
    return (pixels.astype(np.float64) - 128) / 256 * gain


def test_max_is_all_that_was_seen_in_any_batch() -> None:
    pixels = images()
    pixels[99, 0, 0, 0] = 0  # in the last batch
    assert calibrated_ranges(with_gain(3), ["gain.out"], pixels, "max", LEVELS)["gain.out"] == pytest.approx(
        (values(pixels, 3).min(), values(pixels, 3).max())
    )


def test_percentile_is_the_quantile_to_a_bin() -> None:
    pixels = images(600)
    low, high = calibrated_ranges(with_gain(3), ["gain.out"], pixels, "percentile", LEVELS)["gain.out"]
    tail = (100 - PERCENTILE) / 200
    wanted = np.quantile(values(pixels, 3), [tail, 1 - tail])
    bin_width = 2 * np.abs(values(pixels, 3)).max() / 2048
    assert np.abs(np.array([low, high]) - wanted).max() < 0.02 + 2 * bin_width  # a pixel is 0.012 wide
    assert low > values(pixels, 3).min()


def test_entropy_leaves_out_lone_outliers_and_keeps_the_bell() -> None:
    pixels = images()
    low, high = calibrated_ranges(with_gain(3), ["gain.out"], pixels, "entropy", 64)["gain.out"]
    assert -0.9 * 1.5 < low < -3 * 12 / 256 * 3 + 0.05
    assert 3 * 12 / 256 * 3 - 0.05 < high < 0.9 * 1.5


def test_entropy_is_not_decided_by_zeros() -> None:
    rng = np.random.default_rng(0)
    pixels = np.where(rng.random((20, 3, 16, 16)) < 0.9, 128, rng.integers(128, 256, (20, 3, 16, 16))).astype(np.uint8)
    low, high = calibrated_ranges(with_gain(3), ["gain.out"], pixels, "entropy", 16)["gain.out"]
    assert low == 0
    assert high > 0.9 * values(pixels, 3).max()


def test_mse_errs_no_more_than_any_other_calibration() -> None:
    pixels, levels = images(), 16
    numbers = values(pixels, 3).ravel()

    def error(span: tuple[float, float]) -> float:
        scale = (max(span[1], 0) - min(span[0], 0)) / (levels - 1)
        zero = np.rint(-min(span[0], 0) / scale)
        return float(
            np.square((np.clip(np.rint(numbers / scale) + zero, 0, levels - 1) - zero) * scale - numbers).mean()
        )

    spans = {
        name: calibrated_ranges(with_gain(3), ["gain.out"], pixels, name, levels)["gain.out"]
        for name in ("max", "percentile", "entropy", "mse")
    }
    errors = {name: error(span) for name, span in spans.items()}
    assert errors["mse"] <= 1.02 * min(errors.values())
    assert errors["mse"] < 0.5 * errors["max"]


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("percentile", "entropy"):
        calibrated_ranges(with_gain(3), ["gain.out"], images(8), name, 16)
    assert capsys.readouterr().out == ""
