"""Gemm, MatMul, BatchNormalization, and the operators that only move values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional

from gradient_reference import check_adjoint, check_rule, for_all, one_operator, relative_error, run, vector_jacobian
from hardbit.graph.gradient import differentiate

MANY = pytest.mark.parametrize("examples", [25, pytest.param(300, marks=pytest.mark.slow)])


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def gemm_cases(draw):
    rows, inner, columns = (draw(st.integers(1, 6)) for _ in range(3))
    return rows, inner, columns, draw(st.booleans()), draw(st.sampled_from([1.0, 0.5, -3.0]))


@MANY
def test_gemm(examples):
    def holds(case):
        rows, inner, columns, transposed_b, alpha = case
        x = draws(rows, inner)
        w, b = draws(columns, inner, seed=1) if transposed_b else draws(inner, columns, seed=1), draws(columns, seed=2)
        weights, bias = torch.from_numpy(w).double(), torch.from_numpy(b).double()
        options = {"transB": int(transposed_b), "alpha": alpha, "beta": 2.0}

        def by_torch(image):
            return alpha * image @ (weights.T if transposed_b else weights) + 2.0 * bias

        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", **options)
        check_rule([node], x, by_torch, {"w": w, "b": b})
        check_adjoint([node], x, {"w": w, "b": b})

    for_all(gemm_cases(), holds, examples)


@pytest.mark.parametrize("transposed_b", [0, 1])
def test_gemm_with_its_first_operand_transposed(transposed_b):
    """The batch then is the second axis, so it has to be fixed."""
    x, w, v = draws(4, 3), draws(5, 4, seed=1) if transposed_b else draws(4, 5, seed=1), draws(3, 5, seed=2)
    weights = torch.from_numpy(w).double()
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm", transA=1, transB=transposed_b, alpha=0.5)
    model = one_operator([node], x, (3, 5), {"w": w})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    gradient = run(differentiate(model, "y", "x"), {"x": x, "grad_output": v})["gradient"]
    expected = vector_jacobian(lambda i: 0.5 * i.T @ (weights.T if transposed_b else weights), x, v)
    assert relative_error(gradient, expected) < 1e-6


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_matmul_with_a_constant_on_the_right(rank):
    x, w = draws(*(2, 3, 4, 5)[4 - rank :]), draws(5, 6, seed=1)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    check_rule([node], x, lambda i: i @ torch.from_numpy(w).double(), {"w": w}, in_double=True)


def test_matmul_with_a_constant_on_the_left():
    x, w = draws(2, 4, 5), draws(3, 4, seed=1)
    node = helper.make_node("MatMul", ["w", "x"], ["y"])
    check_rule([node], x, lambda i: torch.from_numpy(w).double() @ i, {"w": w})


@st.composite
def products(draw):
    """Shapes of two activations, or of an activation and a constant, whose leading axes are broadcast."""
    rows, inner, columns = (draw(st.integers(1, 4)) for _ in range(3))
    lead = draw(st.sampled_from([(), (1,), (3,)]))
    other = draw(st.sampled_from([(), (1,), lead])) if lead else ()
    shapes = [(2, *lead, rows, inner), (2, *other, inner, columns)]
    return shapes if draw(st.booleans()) else [(2, *other, rows, inner), (2, *lead, inner, columns)]


@MANY
def test_matmul_of_two_activations(examples):
    """Both are made of the image: one as it is, one by a product with a constant that gives it its shape."""

    def holds(case):
        left, right = case
        x = draws(2, int(np.prod(left[1:])))
        w = draws(x.shape[1], int(np.prod(right[1:])), seed=1)
        rank = max(len(left), len(right))
        padded = [(2, *[1] * (rank - len(shape)), *shape[1:]) for shape in (left, right)]
        constants = {"w": w, "l": np.array((-1, *padded[0][1:])), "r": np.array((-1, *padded[1][1:]))}
        nodes = [
            helper.make_node("Reshape", ["x", "l"], ["a"]),
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Reshape", ["m", "r"], ["b"]),
            helper.make_node("MatMul", ["a", "b"], ["y"], name="product"),
        ]
        weights = torch.from_numpy(w).double()
        check_rule(nodes, x, lambda i: i.reshape(padded[0]) @ (i @ weights).reshape(padded[1]), constants)

    for_all(products(), holds, examples)


def test_matmul_of_a_tensor_with_itself_transposed():
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=(0, 2, 1)), helper.make_node("MatMul", ["x", "t"], ["y"])]
    check_rule(nodes, draws(2, 4, 3), lambda i: i @ i.transpose(1, 2), in_double=True)


def test_matmul_of_constants_with_more_axes_than_the_image():
    w = draws(3, 5, 4, seed=1)
    node = helper.make_node("MatMul", ["w", "x"], ["y"], name="product")
    check_rule([node], draws(3, 4, 2), lambda i: torch.from_numpy(w).double() @ i, {"w": w})


@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_batch_normalization_at_inference(epsilon):
    rng = np.random.default_rng(0)
    names = ("gamma", "beta", "mean", "variance")
    values = {name: rng.uniform(0.5, 1.5, 3).astype(np.float32) for name in names}
    t = {name: torch.from_numpy(value).double() for name, value in values.items()}
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"], name="norm", epsilon=epsilon)
    check_rule(
        [node],
        draws(2, 3, 4, 5),
        lambda i: functional.batch_norm(i, t["mean"], t["variance"], t["gamma"], t["beta"], eps=epsilon),
        values,
    )


def test_flatten():
    check_rule([helper.make_node("Flatten", ["x"], ["y"], axis=1)], draws(2, 3, 4, 5), lambda i: i.flatten(1))


@pytest.mark.parametrize("shape", [(0, 12, 5), (-1, 3, 20), (0, -1)])
def test_reshape_that_keeps_the_batch(shape):
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    to = [2 if size == 0 else size for size in shape] if 0 in shape else shape
    check_rule([node], draws(2, 3, 4, 5), lambda i: i.reshape(*to), {"s": np.array(shape, np.int64)})


def test_unsqueeze_and_squeeze():
    axes = {"a": np.array([2], np.int64)}
    nodes = [helper.make_node("Unsqueeze", ["x", "a"], ["u"]), helper.make_node("Squeeze", ["u", "a"], ["y"])]
    check_rule(nodes, draws(2, 3), lambda i: i * 1, axes)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (0, 2, 1, 3), (0, 1, 2, 3)])
def test_transpose(order):
    node = helper.make_node("Transpose", ["x"], ["y"], perm=order)
    check_rule([node], draws(2, 3, 4, 5), lambda i: i.permute(order), in_double=True)


@pytest.mark.parametrize("axis", [1, -2])
def test_concat_of_the_image_twice_around_a_constant(axis):
    c = draws(2, 3, 4)
    node = helper.make_node("Concat", ["x", "c", "x"], ["y"], axis=axis)
    constant = torch.from_numpy(c).double()
    weighted = [helper.make_node("Mul", ["y0", "y0"], ["y"])]
    node.output[0] = "y0"
    check_rule([node, *weighted], draws(2, 3, 4, seed=1), lambda i: torch.cat([i, constant, i], axis) ** 2, {"c": c})
