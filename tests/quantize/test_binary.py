"""One bit with a sign: values, derivatives, and integers of a layer that has them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hardbit.quantize.binary import binarize
from hardbit.quantize.quantizers import (
    activation_numerics,
    activation_scale,
    parameter_codes,
    quant_conv,
    quant_identity,
    quant_linear,
    quant_relu,
    set_bias_grid,
    weight_scale,
)
from hardbit.quantize.scales import short_significand

SCALES = st.integers(-8, 8).map(lambda exponent: 2.0**exponent)
MULTIPLES = st.lists(st.integers(-(2**12), 2**12), min_size=1, max_size=30)


@given(SCALES, MULTIPLES)
def test_what_is_above_zero_is_plus_scale_and_the_rest_is_minus_scale(scale, multiples):
    """On sums of codes: of numbers that lie 2^-23 of the scale from zero, the sum with the scale forgets the side."""
    x = torch.tensor(multiples, dtype=torch.float32) * scale / 1024
    assert torch.equal(binarize(x, scale), torch.where(x > 0, scale, -scale))


@given(SCALES, MULTIPLES)
def test_the_gradient_passes_half_a_step_beyond_the_two_levels(scale, multiples):
    x = (torch.tensor(multiples, dtype=torch.float32) * scale / 1024).requires_grad_()
    (gradient,) = torch.autograd.grad(binarize(x, scale).sum(), x)
    inside = (x >= -2 * scale) & (x < 2 * scale)  # the borders are rounded to even, as everywhere
    assert torch.equal(gradient, inside.float())


def test_the_scale_learns_as_that_of_every_quantizer_does():
    """d(scale q(x / scale)) / d scale = q - x / scale where the gradient passes, q where it does not."""
    x = torch.tensor([-5.0, -1.5, -0.25, 0.25, 1.5, 5.0])
    scale = torch.tensor(0.5, requires_grad=True)
    for value, expected in zip(x, [-1, -1, -0.5, 0.5, 1, 1], strict=True):
        (gradient,) = torch.autograd.grad(binarize(value, scale), scale)
        assert float(gradient) == expected


def test_an_activation_quantizer_of_one_bit_is_binary_where_values_may_be_negative():
    layer = quant_identity(1, signed=True)
    activation_scale(layer).value.fill_(0.5)
    numerics = activation_numerics(layer)
    assert (numerics.is_binary, numerics.low, numerics.high, numerics.bits) == (True, -1, 1, 1)
    assert layer(torch.tensor([-3.0, -0.1, 0.0, 0.1, 3.0])).tolist() == [-0.5, -0.5, -0.5, 0.5, 0.5]


@pytest.mark.parametrize("layer", [quant_relu(1), quant_identity(1, signed=False)])
def test_behind_a_relu_one_bit_is_zero_or_the_scale(layer):
    activation_scale(layer).value.fill_(0.5)
    numerics = activation_numerics(layer)
    assert (numerics.is_binary, numerics.low, numerics.high) == (False, 0, 1)
    x = torch.tensor([0.0, 0.2, 0.25, 0.26, 0.5, 0.74, 0.75, 9.0], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient[1:].tolist() == [1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(("make", "source"), [(quant_conv, nn.Conv2d(3, 5, 3)), (quant_linear, nn.Linear(7, 4))])
def test_weights_of_one_bit_are_signs_times_the_mean_magnitude(make, source):
    layer = make(source, 1)
    weight = source.weight.detach()
    axes = tuple(range(1, weight.dim()))
    scale = short_significand(weight.abs().mean(axes, keepdim=True))
    assert torch.equal(layer.quant_weight().value, torch.where(weight > 0, scale, -scale))
    weight_scale(layer).freeze(layer.weight)
    set_bias_grid(layer, weight_scale(layer).fixed.flatten() / 256)
    codes = parameter_codes(layer)
    assert codes.weight_bits == 1
    assert set(codes.weight.unique().tolist()) == {-1, 1}
    assert torch.equal(codes.weight_scale, scale.flatten())


def test_weights_of_one_bit_learn_straight_through_and_by_their_scale():
    """y = sign(w) mean|w|: each w moves its own y as if that were w, and all of them by its share in the mean."""
    torch.manual_seed(0)
    layer = quant_linear(nn.Linear(6, 2), 1)
    pull = torch.randn(2, 6)
    (gradient,) = torch.autograd.grad((layer.quant_weight().value * pull).sum(), layer.weight)
    sign = torch.sign(layer.weight.detach())
    expected = pull + sign * (pull * sign).sum(1, keepdim=True) / 6
    assert torch.allclose(gradient, expected, rtol=1e-5)


def test_a_batch_of_gradients_reaches_what_lies_before_and_behind():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), quant_identity(1, signed=True), quant_linear(nn.Linear(8, 3), 1))
    x = torch.randn(5, 4, requires_grad=True)
    network(x).square().sum().backward()
    assert all(np.abs(p.grad.numpy()).max() > 0 for p in (x, network[0].weight, network[2].weight))
