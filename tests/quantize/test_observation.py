"""The scale that calibration suggests: powers of two by the largest values, or by the smallest error for few codes."""

import math

import numpy as np
import pytest
import torch
from brevitas.nn import QuantReLU
from hypothesis import given, settings
from hypothesis import strategies as st

from hardbit import nets
from hardbit.quantize import Bits, calibrate, quantize
from hardbit.quantize.bits import CALIBRATIONS
from hardbit.quantize.observation import Codes, observer_for
from hardbit.quantize.quantizers import activation_numerics, activation_scale
from hardbit_deploy.errors import HardbitError

MANY = [Codes(0, 15), Codes(0, 127), Codes(0, 255), Codes(-8, 7), Codes(-128, 127)]
FEW = [Codes(0, 1), Codes(0, 3), Codes(-2, 1), Codes(-1, 1, is_binary=True)]


def suggested(codes, *batches, calibration="range"):
    observer = observer_for(codes, calibration)
    meanwhile = [float(observer.see(torch.as_tensor(batch, dtype=torch.float32))) for batch in batches]
    assert not any(scale <= 0 for scale in meanwhile)
    return observer.suggested()


def error(codes, values, scale):
    """Mean square of what quantization moves, written out with numpy."""
    if codes.is_binary:
        quantized = np.where(values > 0, scale, -scale)
    else:
        quantized = np.clip(np.rint(values / scale), codes.low, codes.high) * scale
    return np.mean((quantized - values) ** 2)


@pytest.mark.parametrize("codes", MANY)
@given(reach=st.floats(1e-4, 1e4))
def test_many_codes_reach_to_the_largest_values(codes, reach):
    exponent = math.log2(suggested(codes, np.full(1000, reach)))
    assert exponent == int(exponent)
    assert abs(exponent - math.log2(reach / codes.high)) <= 0.5 + 1e-5


@pytest.mark.parametrize("codes", FEW)
@settings(max_examples=40)
@given(spread=st.floats(1e-3, 1e3), seed=st.integers(0, 99), kind=st.sampled_from(["normal", "exponential", "uniform"]))
def test_few_codes_move_the_values_least(codes, spread, seed, kind):
    rng = np.random.default_rng(seed)
    values = {"normal": rng.normal, "exponential": rng.exponential, "uniform": rng.uniform}[kind](size=4000) * spread
    values = np.maximum(values, 0) if codes.low == 0 else values * rng.choice([-1, 1], 4000)
    values = values.astype(np.float32)
    found = suggested(codes, *np.split(values, 4))
    assert math.log2(found) == int(math.log2(found))
    for other in (found / 4, found / 2, found * 2, found * 4):
        assert error(codes, values, found) <= error(codes, values, other) * (1 + 1e-5)


def test_behind_a_relu_few_codes_are_in_use():
    """A scale that reaches to the largest values would leave nearly all of them at zero."""
    values = np.maximum(np.random.default_rng(0).normal(size=10_000), 0)
    assert suggested(Codes(0, 1), values) == 1.0
    assert np.mean(values > 0.5) > 0.3
    assert np.mean(values > 2.0) < 0.03  # half of the largest value


def test_one_bit_with_a_sign_has_the_mean_magnitude():
    values = np.random.default_rng(0).laplace(size=4000)
    assert suggested(Codes(-1, 1, is_binary=True), values * 8) == 8.0


def test_a_rare_outlier_is_ignored():
    values = np.full(10_000, 15.0)
    values[:5] = 1e6
    assert suggested(Codes(0, 15), values) == 1.0


def test_a_layer_that_is_hardly_ever_active_is_calibrated_by_what_is():
    values = np.zeros(10_000)
    values[0] = 15.0
    assert suggested(Codes(0, 15), values) == 1.0


@pytest.mark.parametrize("codes", [Codes(0, 15, ceiling=6.0), Codes(0, 3, ceiling=6.0)])
def test_nothing_is_looked_at_above_the_ceiling(codes):
    values = np.random.default_rng(0).uniform(0, 6, 4000)
    far, near = (np.append(values, np.full(400, end)) for end in (1e4, 6.0))
    assert suggested(codes, far) == suggested(codes, near)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("codes", [*MANY, *FEW])
@pytest.mark.parametrize("batches", [[], [np.zeros(100)], [np.full(100, np.nan)], [np.full(100, np.inf)]])
def test_from_nothing_nothing_is_suggested(codes, batches, calibration):
    assert suggested(codes, *batches, calibration=calibration) is None


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("codes", [*MANY, *FEW])
def test_a_batch_of_zeros_among_others_does_no_harm(codes, calibration):
    values = np.random.default_rng(0).uniform(0.1, 1, 1000)
    assert suggested(codes, np.zeros(1000), values, values, calibration=calibration) is not None


@pytest.mark.parametrize("codes", [*MANY, *FEW])
@given(spread=st.floats(1e-3, 1e3), zeros=st.integers(0, 3000), seed=st.integers(0, 99))
def test_a_saturating_range_ends_at_the_root_mean_square_of_what_is_not_zero(codes, spread, zeros, seed):
    values = np.random.default_rng(seed).normal(size=1000) * spread
    values = np.abs(values) if codes.low == 0 else values
    found = suggested(codes, np.append(values, np.zeros(zeros)), calibration="saturating")
    end = math.log2(found * (codes.high + 1))
    assert math.log2(found) == int(math.log2(found))
    assert abs(end - math.log2(np.sqrt(np.mean(values**2)))) <= 0.5 + 1e-4


def test_behind_batch_norm_and_relu_a_third_of_what_is_active_saturates_at_every_width():
    values = np.maximum(np.random.default_rng(0).normal(size=100_000), 0)
    for bits in (8, 7, 4, 3, 2, 1):
        scale = suggested(Codes(0, 2**bits - 1), values, calibration="saturating")
        assert scale * 2**bits == 1.0


def test_the_rule_of_a_network_is_that_of_its_relus():
    module = quantize(nets.build("resnet8"), "onnxruntime", Bits(4, 4, calibration="saturating"))
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    calibrate(module, images.split(32))
    ranged = quantize(nets.build("resnet8"), "onnxruntime", Bits(4, 4))
    calibrate(ranged, images.split(32))
    for (name, one), (_, other) in zip(module.named_modules(), ranged.named_modules(), strict=True):
        if isinstance(one, QuantReLU):
            assert activation_numerics(one).scale <= activation_numerics(other).scale / 2, name
    assert activation_scale(module.pool_quant).calibration == "range"


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(HardbitError, match=r"^quantization.calibration: .*'mean'; choose one of range, saturating"):
        Bits(calibration="mean")
