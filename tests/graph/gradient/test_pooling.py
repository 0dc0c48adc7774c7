"""The adjoints of pooling are those of torch, ties and uncounted padding included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional

from gradient_reference import average_pool, check_adjoint, check_rule, for_all, max_pool, one_operator, run
from hardbit.graph.gradient import differentiate

BOTH = pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
MANY = pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.slow)])


@dataclass(frozen=True)
class PoolCase:
    """`levels`: the image takes that many distinct values, so that a few make ties in nearly every window."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    size: tuple[int, int]
    levels: int = 1000
    count_include_pad: int = 0

    def image(self):
        codes = np.random.default_rng(5).integers(0, self.levels, (2, 3, *self.size))
        return (codes / self.levels - 0.5).astype(np.float32)

    def options(self):
        return {"kernel_shape": self.kernel, "strides": self.strides, "pads": self.pads}


@st.composite
def pool_cases(draw):
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel = pair(1, 4)
    tiling = draw(st.booleans())
    strides = kernel if tiling else pair(1, 3)
    # ONNX Runtime and torch refuse a padding as large as the kernel.
    pads = (0, 0, 0, 0) if tiling else tuple(draw(st.integers(0, kernel[k % 2] - 1)) for k in range(4))
    size = tuple(k * draw(st.integers(1, 4)) for k in kernel) if tiling else pair(2, 9)
    for axis in range(2):
        assume(size[axis] + pads[axis] + pads[axis + 2] >= kernel[axis])
    return PoolCase(kernel, strides, pads, size, draw(st.sampled_from([2, 4, 1000])), draw(st.integers(0, 1)))


@MANY
@BOTH
def test_the_first_maximum_takes_the_gradient(examples, target):
    def holds(case):
        node = helper.make_node("MaxPool", ["x"], ["y"], name="pool", **case.options())
        check_rule([node], case.image(), lambda x: max_pool([x], case.options()), target=target)

    for_all(pool_cases(), holds, examples)


@BOTH
def test_four_equal_values_give_their_gradient_to_the_first(target):
    x = np.zeros((1, 1, 2, 2), np.float32)
    node = helper.make_node("MaxPool", ["x"], ["y"], name="pool", kernel_shape=[2, 2], strides=[2, 2])

    def first(image):
        return image[:, :, :1, :1]

    check_rule([node], x, first, target=target)


@MANY
def test_average_pooling(examples):
    def holds(case):
        options = case.options() | {"count_include_pad": case.count_include_pad}
        node = helper.make_node("AveragePool", ["x"], ["y"], name="pool", **options)
        check_rule([node], case.image(), lambda x: average_pool([x], options))
        check_adjoint([node], case.image(), {})

    for_all(pool_cases(), holds, examples)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_windows_that_would_tile_the_image_but_are_shifted_by_padding(operator):
    case = PoolCase((2, 2), (2, 2), (1, 1, 0, 0), (6, 6))
    node = helper.make_node(operator, ["x"], ["y"], **case.options())
    by_hand = max_pool if operator == "MaxPool" else average_pool
    check_rule([node], case.image(), lambda x: by_hand([x], case.options()))


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_automatic_padding(operator):
    x = PoolCase((3, 3), (2, 2), (0, 0, 0, 0), (8, 8)).image()
    node = helper.make_node(operator, ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    explicit = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (0, 0, 1, 1)}
    by_hand = max_pool if operator == "MaxPool" else average_pool
    check_rule([node], x, lambda image: by_hand([image], explicit))


def test_the_average_of_an_image():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    check_rule(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])], x, lambda i: i.mean((2, 3), keepdim=True), in_double=True
    )


def test_a_spread_gradient_meets_a_dense_one():
    """The gradient of the average stays one value per channel; summed with another path it must become dense."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Mul", ["r", "mean"], ["y"]),
    ]
    check_rule(nodes, x, lambda i: torch.relu(i) * i.mean((2, 3), keepdim=True))


def test_the_sum_of_two_spread_gradients():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["a"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    check_rule(nodes, x, lambda i: i.mean((2, 3), keepdim=True) + torch.relu(i).mean((2, 3), keepdim=True))


def test_a_mean_that_is_read_beside_its_tensor():
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["x", "a"], ["m"], keepdims=1),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Mul", ["x", "r"], ["y"]),
    ]
    check_rule(nodes, x, lambda i: i * torch.relu(i.mean(1, keepdim=True)), {"a": np.array([1], np.int64)})


@st.composite
def rounded_up(draw):
    """Windows of any rank whose last one may reach beyond the padding, as torch allows it: more than half a kernel
    of padding is refused there."""
    rank = draw(st.sampled_from([1, 2, 2]))
    kernel = [draw(st.integers(2, 3)) for _ in range(rank)]
    options = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
        "pads": [draw(st.integers(0, size // 2)) for size in kernel] * 2,
        "ceil_mode": 1,
    }
    size = [draw(st.integers(4, 8)) for _ in range(rank)]
    for axis in range(rank):
        span = size[axis] + 2 * options["pads"][axis] - kernel[axis]
        last = -(-span // options["strides"][axis]) * options["strides"][axis]
        assume(last < size[axis] + options["pads"][axis])
    return options, np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32), draw(st.booleans())


@MANY
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_sizes_that_are_rounded_up(operator, examples):
    def holds(case):
        options, x, counted = case
        rank = x.ndim - 2
        pads, strides, kernel = options["pads"][:rank], options["strides"], options["kernel_shape"]
        options = options | ({"count_include_pad": int(counted)} if operator == "AveragePool" else {})

        def by_torch(image):
            if operator == "MaxPool":
                pool = functional.max_pool1d if rank == 1 else functional.max_pool2d
                return pool(image, kernel, strides, pads, ceil_mode=True)
            pool = functional.avg_pool1d if rank == 1 else functional.avg_pool2d
            return pool(image, kernel, strides, pads, ceil_mode=True, count_include_pad=counted)

        check_rule([helper.make_node(operator, ["x"], ["y"], name="pool", **options)], x, by_torch)

    for_all(rounded_up(), holds, examples)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("stride", [1, 2])
def test_pools_over_one_axis_and_over_three(operator, rank, stride):
    x = np.random.default_rng(0).standard_normal((2, 3, *[6] * rank)).astype(np.float32)
    kinds = {"MaxPool": "max_pool", "AveragePool": "avg_pool"}
    pool = getattr(functional, f"{kinds[operator]}{rank}d")
    node = helper.make_node(operator, ["x"], ["y"], kernel_shape=[2] * rank, strides=[stride] * rank)
    check_rule([node], x, lambda i: pool(i, 2, stride))


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 1]])
def test_the_length_of_a_window(p, pads):
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)
    node = helper.make_node("LpPool", ["x"], ["y"], name="pool", kernel_shape=[3, 2], strides=[2, 1], pads=pads, p=p)

    def by_torch(image):
        padded = functional.pad(image.abs() ** p, (pads[1], pads[3], pads[0], pads[2]))
        return (functional.avg_pool2d(padded, (3, 2), (2, 1)) * 6) ** (1 / p)

    check_rule([node], x, by_torch, tolerance=1e-5)


def test_a_window_of_zeros_has_a_length_with_a_gradient_of_zeros():
    x = np.array([[[[0, 0, 3, -4]]]], np.float32)
    node = helper.make_node("LpPool", ["x"], ["y"], kernel_shape=[1, 2], strides=[1, 2], p=2)
    product = differentiate(one_operator([node], x, (1, 1, 1, 2), {}), "y", "x")
    result = run(product, {"x": x, "grad_output": np.ones((1, 1, 1, 2), np.float32)})
    np.testing.assert_allclose(result["gradient"], [[[[0, 0, 0.6, -0.8]]]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5)])
def test_equal_maxima_of_an_image_share_the_gradient(shape):
    x = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    axes = tuple(range(2, len(shape)))
    check_rule([helper.make_node("GlobalMaxPool", ["x"], ["y"])], x, lambda i: i.amax(axes, keepdim=True))
