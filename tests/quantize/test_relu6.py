"""ReLU6 and its quantizer are one clip of codes: the values of clipping first, the derivative that codes show."""

import copy

import pytest
import torch

from hardbit.quantize.quantizers import activation_numerics, activation_scale, quant_relu


def calibrated_relu6(bits, values):
    layer = quant_relu(bits, ceiling=6.0)
    scale = activation_scale(layer)
    scale.observe()
    layer(values)
    assert scale.settle()
    return layer


@pytest.mark.parametrize("bits", [8, 7, 4, 3, 2])
@pytest.mark.parametrize("spread", [0.3, 3.0, 300.0])
def test_it_is_the_quantization_of_relu6(bits, spread):
    values = torch.randn(5000, generator=torch.Generator().manual_seed(bits)) * spread
    layer = calibrated_relu6(bits, values)
    numerics = activation_numerics(layer)
    at_first_clipped = torch.round(torch.nn.functional.relu6(values) / numerics.scale).clamp(0, 2**bits - 1)
    assert torch.equal(layer(values), at_first_clipped * numerics.scale)
    assert torch.equal(copy.deepcopy(layer)(values), layer(values))
    assert numerics.high == min(2**bits - 1, round(6 / numerics.scale))
    assert numerics.high * numerics.scale <= 8  # 6 to the next code


def test_the_gradient_passes_where_the_codes_are_inside():
    layer = calibrated_relu6(8, torch.linspace(-1, 6, 1000))
    scale = activation_numerics(layer).scale
    x = torch.tensor([-1.0, 0.0, 1e-6, 3.0, 6.0, 6 + 0.49 * scale, 6 + 0.51 * scale, 7.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert gradient.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_values_far_above_six_do_not_widen_the_scale():
    values = torch.full((1000,), 600.0)
    assert activation_numerics(calibrated_relu6(8, values)).scale == 2**-5
