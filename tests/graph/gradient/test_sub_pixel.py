"""Four phases and their interleaving against ConvTranspose of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn import functional

from hardbit.graph.gradient.sub_pixel import doubles, sub_pixel_weights


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 3)])
def test_four_phases_are_the_adjoint_of_a_convolution_of_stride_two(size: int, padding: int) -> None:
    rng = np.random.default_rng(size)
    weights, cotangent = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 4, size, size), (2, 6, 5, 5)))
    kernel, (top, left, bottom, right) = sub_pixel_weights(weights, padding)
    padded = functional.pad(torch.from_numpy(cotangent), (left, right, top, bottom))
    phases = functional.conv2d(padded, torch.from_numpy(kernel)).numpy()
    ours = phases.reshape(2, 2, 2, 4, 5, 5).transpose(0, 3, 4, 1, 5, 2).reshape(2, 4, 10, 10)
    over = 2 - size + 2 * padding
    expected = functional.conv_transpose2d(
        torch.from_numpy(cotangent), torch.from_numpy(weights), stride=2, padding=padding, output_padding=over
    )
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"kernel_shape": [4, 4], "output_padding": [0, 0]}, True),
        ({"strides": [2, 1]}, False),
        ({"pads": [0, 0, 1, 1]}, False),
        ({"output_padding": [0, 0]}, False),
        ({"kernel_shape": [3, 5]}, False),
        ({"dilations": [2, 2]}, False),
        ({"group": 2}, False),
    ],
)
def test_other_transposed_convolutions_stay_in_float(change: dict, fits: bool) -> None:
    plain = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1], "group": 1}
    assert doubles(helper.make_node("ConvTranspose", ["x", "w"], ["y"], **(plain | change))) is fits
