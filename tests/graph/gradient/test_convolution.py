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


@st.composite
def lines_and_volumes(draw):
    """A convolution over one axis or three, and its input."""
    rank = draw(st.sampled_from([1, 3]))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    options = {
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "pads": [draw(st.integers(0, 2)) for _ in range(2 * rank)],
        "group": draw(st.sampled_from([1, 2])),
    }
    channels = draw(st.sampled_from([2, 32]))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, channels // options["group"], *kernel)).astype(np.float32)
    return options, weights, rng.standard_normal((2, channels, *[6] * rank)).astype(np.float32)


def padded_for(x, pads):
    rank = len(pads) // 2
    return functional.pad(x, [pads[axis + side * rank] for axis in reversed(range(rank)) for side in range(2)])


@MANY
def test_over_one_axis_and_over_three(examples):
    def holds(case):
        options, weights, x = case
        convolve = functional.conv1d if weights.ndim == 3 else functional.conv3d
        w = torch.from_numpy(weights).double()

        def by_torch(image):
            image = padded_for(image, options["pads"])
            return convolve(image, w, None, options["strides"], 0, options["dilations"], options["group"])

        check_rule([helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **options)], x, by_torch, {"w": weights})

    for_all(lines_and_volumes(), holds, examples // 3)


@st.composite
def transposed_cases(draw):
    """Attributes of a ConvTranspose that torch has too, for one or two axes."""
    rank = draw(st.sampled_from([1, 2, 2]))
    strides, dilations = ([draw(st.integers(1, 3)) for _ in range(rank)] for _ in range(2))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    pads = [draw(st.integers(0, dilations[k] * (kernel[k] - 1))) for k in range(rank)]
    options = {
        "strides": strides,
        "dilations": dilations,
        "pads": pads * 2,
        "output_padding": [draw(st.integers(0, stride - 1)) for stride in strides],
        "group": draw(st.sampled_from([1, 2])),
    }
    size = [draw(st.integers(3, 5)) for _ in range(rank)]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 3, *kernel)).astype(np.float32)
    return options, weights, rng.standard_normal((2, 4, *size)).astype(np.float32)


@MANY
def test_the_transposed_convolution(examples):
    def holds(case):
        options, weights, x = case
        convolve = functional.conv_transpose1d if weights.ndim == 3 else functional.conv_transpose2d
        w = torch.from_numpy(weights).double()
        pads, padding = options["pads"][: weights.ndim - 2], options["output_padding"]

        def by_torch(image):
            return convolve(image, w, None, options["strides"], pads, padding, options["group"], options["dilations"])

        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="conv", **options)
        check_rule([node], x, by_torch, {"w": weights})

    for_all(transposed_cases(), holds, examples)


@pytest.mark.parametrize(
    "options",
    [
        {"pads": [0, 1, 2, 0]},
        {"auto_pad": "VALID"},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"output_shape": [9, 10]},
        {"output_shape": [9, 10], "auto_pad": "SAME_UPPER"},
        {"output_shape": [10, 9], "auto_pad": "SAME_LOWER"},
    ],
    ids=str,
)
def test_what_a_transposed_convolution_crops(options):
    """Needs no second implementation of the rules for cropping: inner products with ONNX Runtime's own forward pass."""
    rng = np.random.default_rng(0)
    weights, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 2, 4, 3), (2, 3, 5, 5)))
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="conv", strides=[2, 2], **options)
    check_adjoint([node], x, {"w": weights})
