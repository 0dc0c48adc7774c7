"""Norms and Softmax, in any rank and along any axis but the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional

from gradient_reference import check_rule, differentiate, for_all, one_operator
from hardbit.graph.gradient import UnsupportedOperator

MANY = pytest.mark.parametrize("examples", [25, pytest.param(400, marks=pytest.mark.slow)])


def draws(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@st.composite
def shapes_and_axes(draw, least=1):
    shape = (2, *(draw(st.integers(least, 5)) for _ in range(draw(st.integers(1, 3)))))
    axis = draw(st.integers(1, len(shape) - 1))
    return shape, axis if draw(st.booleans()) else axis - len(shape)


@MANY
def test_softmax(examples):
    def holds(case):
        (shape, axis), scale = case
        node = helper.make_node("Softmax", ["x"], ["y"], axis=axis)
        check_rule([node], draws(*shape, scale=scale), lambda i: torch.softmax(i, axis), in_double=True)

    for_all(st.tuples(shapes_and_axes(), st.sampled_from([0.1, 1.0, 3.0])), holds, examples)


def test_softmax_of_its_own_accord_takes_the_last_axis():
    check_rule([helper.make_node("Softmax", ["x"], ["y"])], draws(2, 3, 4), lambda i: torch.softmax(i, -1))


@MANY
def test_layer_normalization(examples):
    def holds(case):
        (shape, axis), has_bias, epsilon = case
        size = shape[axis:]
        scale, bias = draws(*size, seed=1), draws(*size, seed=2)
        names = ["x", "scale", "bias"][: 3 if has_bias else 2]
        node = helper.make_node("LayerNormalization", names, ["y"], name="norm", axis=axis, epsilon=epsilon)
        constants = {"scale": scale, "bias": bias} if has_bias else {"scale": scale}
        weights = [torch.from_numpy(value).double() for value in constants.values()]

        def by_torch(image):
            return functional.layer_norm(image, size, *weights, eps=epsilon)

        check_rule([node], draws(*shape, seed=3), by_torch, constants, tolerance=1e-4)

    # Of the gradient of one or two values nothing is left but rounding.
    for_all(st.tuples(shapes_and_axes(least=3), st.booleans(), st.sampled_from([1e-5, 0.01])), holds, examples)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_layer_normalization_of_wide_rows_to_float_accuracy(target):
    scale, bias = draws(96, seed=1), draws(96, seed=2)
    weights = [torch.from_numpy(value).double() for value in (scale, bias)]
    node = helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y"], name="norm", epsilon=1e-5)
    constants = {"scale": scale, "bias": bias}
    check_rule([node], draws(3, 5, 96), lambda i: functional.layer_norm(i, (96,), *weights), constants, target=target)


def test_two_norms_in_a_row_and_a_shortcut_around_them():
    scale = draws(6, seed=1)
    weights = torch.from_numpy(scale).double()
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["a"], name="a"),
        helper.make_node("LayerNormalization", ["a", "scale"], ["b"], name="b"),
        helper.make_node("Add", ["x", "b"], ["y"], name="add"),
    ]

    def by_torch(image):
        first = functional.layer_norm(image, (6,), weights)
        return image + functional.layer_norm(first, (6,), weights)

    check_rule(nodes, draws(2, 4, 6), by_torch, {"scale": scale}, tolerance=1e-5)


def test_a_scale_that_depends_on_the_image_is_refused():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceMean", ["r", "axes"], ["s"], keepdims=0),
        helper.make_node("LayerNormalization", ["x", "s"], ["y"], name="odd"),
    ]
    model = one_operator(nodes, draws(2, 4), (2, 4), {"axes": np.array([0], np.int64)})
    with pytest.raises(UnsupportedOperator, match=r"odd.*scale depends on the image"):
        differentiate(model, "y", "x")


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_instance_normalization(shape, epsilon):
    scale, bias = draws(3, seed=1), draws(3, seed=2)
    weights = [torch.from_numpy(value).double() for value in (scale, bias)]
    node = helper.make_node("InstanceNormalization", ["x", "s", "b"], ["y"], name="norm", epsilon=epsilon)

    def by_torch(image):
        return functional.instance_norm(image, None, None, *weights, eps=epsilon)

    check_rule([node], draws(*shape), by_torch, {"s": scale, "b": bias}, tolerance=1e-5)


@MANY
def test_the_logarithm_of_softmax(examples):
    def holds(case):
        shape, axis = case
        node = helper.make_node("LogSoftmax", ["x"], ["y"], name="softmax", axis=axis)
        check_rule([node], draws(*shape), lambda i: torch.log_softmax(i, axis), tolerance=1e-5)

    for_all(shapes_and_axes(), holds, examples)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("order", [1, 2])
def test_a_vector_over_its_length(axis, order):
    node = helper.make_node("LpNormalization", ["x"], ["y"], name="norm", axis=axis, p=order)
    check_rule([node], draws(2, 3, 4), lambda i: functional.normalize(i, p=order, dim=axis, eps=0), tolerance=1e-5)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size):
    """Odd sizes over two axes are what ONNX Runtime runs."""
    node = helper.make_node("LRN", ["x"], ["y"], name="norm", size=size, alpha=0.9, beta=0.6, bias=1.5)

    def by_definition(image):
        parts = []
        for channel in range(6):
            first, last = max(0, channel - (size - 1) // 2), min(5, channel + size // 2)
            around = (image[:, first : last + 1] ** 2).sum(1)
            parts.append(image[:, channel] / (1.5 + 0.9 / size * around) ** 0.6)
        return torch.stack(parts, 1)

    check_rule([node], draws(2, 6, 3, 4), by_definition, tolerance=1e-5)
