"""The adjoint of Conv is that of torch.nn.functional.conv2d, for every window that ONNX can describe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional

from gradient_reference import check_adjoint, check_rule, for_all

MANY = pytest.mark.parametrize("examples", [30, pytest.param(600, marks=pytest.mark.slow)])


@dataclass(frozen=True)
class ConvCase:
    """`pads` are ONNX's: top, left, bottom, right. `channels` and `filters` are per group."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    group: int
    channels: int
    filters: int
    size: tuple[int, int]

    def weights(self):
        shape = (self.group * self.filters, self.channels, *self.kernel)
        return np.random.default_rng(3).standard_normal(shape).astype(np.float32)

    def image(self):
        return np.random.default_rng(4).standard_normal((2, self.group * self.channels, *self.size)).astype(np.float32)

    def node(self):
        return helper.make_node(
            "Conv", ["x", "w"], ["y"], name="conv", kernel_shape=self.kernel, strides=self.strides,
            dilations=self.dilations, pads=self.pads, group=self.group,
        )  # fmt: skip

    def torch(self, x):
        top, left, bottom, right = self.pads
        weights = torch.from_numpy(self.weights()).double()
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, weights, None, self.strides, 0, self.dilations, self.group)


@st.composite
def conv_cases(draw):
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    case = ConvCase(
        kernel=pair(1, 4),
        strides=pair(1, 3),
        dilations=pair(1, 3),
        pads=(*pair(0, 4), *pair(0, 4)),
        group=draw(st.sampled_from([1, 1, 2, 3])),
        channels=draw(st.sampled_from([1, 2, 16])),
        filters=draw(st.integers(1, 3)),
        size=pair(3, 11),
    )
    for axis in range(2):
        assume(case.size[axis] + case.pads[axis] + case.pads[axis + 2] > case.dilations[axis] * (case.kernel[axis] - 1))
    return case


@MANY
def test_the_adjoint_is_that_of_autograd(examples):
    def holds(case):
        check_rule([case.node()], case.image(), case.torch, {"w": case.weights()})

    for_all(conv_cases(), holds, examples)


@MANY
def test_inner_products_are_preserved(examples):
    def holds(case):
        check_adjoint([case.node()], case.image(), {"w": case.weights()})

    for_all(conv_cases(), holds, examples)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ConvCase((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1, 16, 2, (6, 5)), id="same, flipped Conv"),
        pytest.param(ConvCase((3, 3), (2, 2), (1, 1), (1, 1, 1, 1), 1, 16, 2, (6, 6)), id="strided, last row unread"),
        pytest.param(ConvCase((3, 2), (2, 3), (2, 1), (0, 1, 2, 0), 1, 2, 3, (9, 8)), id="everything asymmetric"),
        pytest.param(ConvCase((2, 2), (1, 1), (1, 1), (3, 3, 3, 3), 1, 16, 1, (3, 3)), id="padded beyond the kernel"),
    ],
)
def test_the_adjoint_is_exact_in_double(case):
    check_rule([case.node()], case.image(), case.torch, {"w": case.weights()}, in_double=True)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_automatic_padding(mode, stride):
    weights = np.random.default_rng(0).standard_normal((2, 3, 4, 3)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 7)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=mode, strides=[stride, stride])

    def by_definition(image):
        pads = []
        for axis, kernel in ((3, 3), (2, 4)):  # torch pads the last axis first
            total = max((-(-image.shape[axis] // stride) - 1) * stride + kernel - image.shape[axis], 0)
            pads += [total // 2, total - total // 2] if mode == "SAME_UPPER" else [total - total // 2, total // 2]
        padded = image if mode == "VALID" else functional.pad(image, pads)
        return functional.conv2d(padded, torch.from_numpy(weights).double(), None, stride)

    check_rule([node], x, by_definition, {"w": weights})


def test_a_bias_changes_nothing_and_is_kept_in_the_forward_pass():
    case = ConvCase((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1, 2, 2, (5, 5))
    bias = np.array([1.5, -2.0], np.float32)
    node = case.node()
    node.input.append("b")
    shifted = lambda x: case.torch(x) + torch.from_numpy(bias).double()[None, :, None, None]  # noqa: E731
    check_rule([node], case.image(), shifted, {"w": case.weights(), "b": bias})
