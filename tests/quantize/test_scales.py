"""Scales: short significands for weights, powers of two for activations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hardbit.quantize import Bits, calibrate, quantize
from hardbit.quantize.quantizers import activation_scale, is_activation_quantizer
from hardbit.quantize.scales import SIGNIFICAND_BITS, WeightScale, short_significand
from hardbit_deploy.errors import HardbitError
from quantized_examples import calibrated


@given(st.floats(2.0**-60, 2.0**20))
def test_a_short_significand_is_the_nearest_number_with_that_many_bits(value):
    (snapped,) = short_significand(torch.tensor([value], dtype=torch.float32)).tolist()
    significand = math.frexp(snapped)[0] * 2**SIGNIFICAND_BITS
    assert significand == int(significand)
    assert abs(snapped - value) <= value * 2.0**-SIGNIFICAND_BITS * (1 + 1e-6)
    neighbours = [math.ldexp((significand + d) / 2**SIGNIFICAND_BITS, math.frexp(snapped)[1]) for d in (-1, 1)]
    assert all(abs(snapped - value) <= abs(n - value) + value * 1e-6 for n in neighbours)


def test_gradients_pass_straight_through_the_snapping():
    scale = torch.tensor([0.3, 0.7], requires_grad=True)
    short_significand(scale).sum().backward()
    assert scale.grad.tolist() == [1.0, 1.0]


def test_the_scale_of_the_image_is_given_and_not_calibrated():
    module = calibrated("lenet", 4)
    assert float(activation_scale(module.input_quant).value) == 1 / 256


@pytest.mark.parametrize("batches", [[], [torch.zeros(16, 1, 28, 28)], [torch.full((16, 1, 28, 28), torch.nan)]])
def test_calibration_without_anything_to_see_is_refused_by_place(batches):
    module = quantize(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(784, 2)), "onnxruntime", Bits())
    with pytest.raises(HardbitError, match=r"^0: calibration saw no values to choose a scale by"):
        calibrate(module, batches)
    calibrate(module, [torch.rand(16, 1, 28, 28) - 0.5])
    assert float(activation_scale(module.get_submodule("0")).value) == 2.0**-9  # nearest to 1/2 over 255


def test_calibration_leaves_no_trace_in_the_statistics_of_batch_norm():
    module = calibrated("lenet", 4)
    before = {name: value.clone() for name, value in module.named_buffers() if "bn" in name}
    calibrate(module, [torch.rand(16, 1, 28, 28) - 0.5])
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers() if "bn" in name)
    scales = [activation_scale(m) for m in module.modules() if is_activation_quantizer(m)]
    assert len(scales) == 4
    assert not any(scale.observing for scale in scales)


@pytest.mark.parametrize(("bits", "learned"), [(8, False), (7, False), (4, True), (3, True), (2, True), (1, False)])
def test_weight_scales_are_learned_from_six_bits_to_two_and_cover_the_weights(bits, learned):
    torch.manual_seed(0)
    weight = torch.randn(6, 3, 3, 3)
    scale = WeightScale(weight, bits)
    assert (scale.log2_scale is not None) == learned
    largest = max(1, 2 ** (bits - 1) - 1)
    statistic = weight.abs().mean((1, 2, 3)) if bits <= 2 else weight.abs().amax((1, 2, 3))
    assert torch.allclose(scale(weight).flatten(), statistic / largest, rtol=2.0**-SIGNIFICAND_BITS)
    if learned:
        scale(weight).sum().backward()
        assert torch.all(scale.log2_scale.grad != 0)


def test_a_frozen_weight_scale_does_not_follow_the_weights():
    layer = nn.Conv2d(2, 4, 3)
    scale = WeightScale(layer.weight, 8)
    scale.freeze(layer.weight)
    assert torch.equal(scale(layer.weight), scale(layer.weight * 3))
