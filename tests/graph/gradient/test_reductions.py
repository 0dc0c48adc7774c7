"""Reductions along any axes but the batch's, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from onnx import helper

from gradient_reference import check_rule, differentiate, for_all, one_operator
from hardbit.graph.gradient import UnsupportedOperator

MANY = pytest.mark.parametrize("examples", [10, pytest.param(200, marks=pytest.mark.slow)])


def product(x, axes, keep):
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: (x**2).sum(axes, keepdim=keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: (x**2).sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceProd": product,
}


@st.composite
def reductions(draw):
    """Shape, axes of any sign and order but the batch, and whether they are kept."""
    shape = (2, *(draw(st.integers(1, 4)) for _ in range(draw(st.integers(1, 3)))))
    axes = draw(st.lists(st.integers(1, len(shape) - 1), min_size=1, unique=True))
    return shape, axes, [axis - len(shape) if draw(st.booleans()) else axis for axis in axes], draw(st.booleans())


@pytest.mark.parametrize("operator", sorted(REDUCTIONS))
@MANY
def test_reduction(operator, examples):
    def holds(case):
        shape, axes, stated, keep = case
        x = np.random.default_rng(0).uniform(0.5, 2, shape).astype(np.float32)
        x = x if operator == "ReduceLogSum" else x * np.random.default_rng(1).choice([-1, 1], shape).astype(np.float32)
        node = helper.make_node(operator, ["x", "a"], ["y"], name="reduce", keepdims=int(keep))
        function = lambda i: REDUCTIONS[operator](i, axes, keep)  # noqa: E731
        check_rule([node], x, function, {"a": np.array(stated, np.int64)}, tolerance=1e-5)

    for_all(reductions(), holds, examples)


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
def test_equal_extremes_share_the_gradient(operator):
    x = np.random.default_rng(0).integers(0, 3, (3, 4, 6)).astype(np.float32)
    node = helper.make_node(operator, ["x", "a"], ["y"], keepdims=0)
    check_rule([node], x, lambda i: REDUCTIONS[operator](i, [1, 2], False), {"a": np.array([1, 2], np.int64)})


def test_the_length_of_nothing_has_a_gradient_of_zeros_and_a_product_with_zeros_the_right_one():
    x = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 3.0], [0.0, 0.0, 3.0]], np.float32)
    axes = {"a": np.array([1], np.int64)}
    lengths = lambda i: torch.linalg.vector_norm(i, dim=1, keepdim=True)  # noqa: E731
    check_rule([helper.make_node("ReduceL2", ["x", "a"], ["y"])], x, lengths, axes)
    check_rule([helper.make_node("ReduceProd", ["x", "a"], ["y"])], x, lambda i: i.prod(1, keepdim=True), axes)


def test_no_axes_that_mean_none():
    node = helper.make_node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1)
    check_rule([node], np.ones((2, 3), np.float32), lambda i: i * 1)


def test_a_reduction_of_everything_is_refused():
    model = one_operator(
        [helper.make_node("ReduceMax", ["x"], ["y"], name="odd")], np.zeros((2, 3), np.float32), (1, 1), {}
    )
    with pytest.raises(UnsupportedOperator, match=r"odd.*ReduceMax along the batch"):
        differentiate(model, "y", "x")


def test_a_reduction_along_the_batch_is_refused():
    node = helper.make_node("ReduceMean", ["x", "a"], ["y"], name="odd", keepdims=1)
    model = one_operator([node], np.zeros((2, 3), np.float32), (1, 3), {"a": np.array([0], np.int64)})
    with pytest.raises(UnsupportedOperator, match=r"odd.*ReduceMean along the batch"):
        differentiate(model, "y", "x")
