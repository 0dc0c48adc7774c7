"""Gemm, MatMul, BatchNormalization, and the operators that only move or repeat values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from gradient_reference import check_adjoint, check_rule, for_all, one_operator, relative_error, run, vector_jacobian
from hardbit.graph.gradient import UnsupportedOperator, differentiate

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


@pytest.mark.parametrize("beta", [1.0, -0.5])
@pytest.mark.parametrize("transposed_b", [0, 1])
@pytest.mark.parametrize("transposed_a", [0, 1])
@pytest.mark.parametrize("wrt", ["A", "B", "C"])
def test_gemm_by_each_operand_however_it_is_read(wrt, transposed_a, transposed_b, beta):
    """Constants elsewhere, then the same tensor in every place."""
    shapes = {"A": (4, 3) if transposed_a else (3, 4), "B": (5, 4) if transposed_b else (4, 5), "C": (1, 5)}
    values = {name: draws(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
    options = {"transA": transposed_a, "transB": transposed_b, "alpha": 0.5, "beta": beta}

    def by_torch(a, b, c):
        return 0.5 * (a.T if transposed_a else a) @ (b.T if transposed_b else b) + beta * c

    model = fixed(helper.make_node("Gemm", ["A", "B", "C"], ["y"], name="gemm", **options), values, wrt, (3, 5))
    v = draws(3, 5, seed=9)
    gradient = run(differentiate(model, "y", wrt), {wrt: values[wrt], "grad_output": v})["gradient"]
    constants = {name: torch.from_numpy(value).double() for name, value in values.items()}
    expected = vector_jacobian(lambda i: by_torch(*(i if k == wrt else constants[k] for k in "ABC")), values[wrt], v)
    assert relative_error(gradient, expected) < 1e-6


def fixed(node, values, wrt, shape):
    """A model of one node whose input is one of its operands, the others being constants, without a batch."""
    graph = helper.make_graph(
        [node],
        "rule",
        [helper.make_tensor_value_info(wrt, TensorProto.FLOAT, values[wrt].shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in values.items() if name != wrt],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("flips", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_of_a_matrix_with_itself(flips):
    x, v = draws(4, 4), draws(4, 4, seed=1)
    node = helper.make_node("Gemm", ["A", "A", "A"], ["y"], transA=flips[0], transB=flips[1])
    gradient = run(differentiate(fixed(node, {"A": x}, "A", (4, 4)), "y", "A"), {"A": x, "grad_output": v})["gradient"]
    expected = vector_jacobian(lambda i: (i.T if flips[0] else i) @ (i.T if flips[1] else i) + i, x, v)
    assert relative_error(gradient, expected) < 1e-6


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


def test_matmul_with_a_constant_vector_on_either_side():
    x, row, column = draws(2, 3, 4), draws(3, seed=1), draws(4, seed=2)
    for names, vector in ((["v", "x"], row), (["x", "v"], column)):
        v = torch.from_numpy(vector).double()
        by_torch = (lambda i, v=v: v @ i) if names[0] == "v" else (lambda i, v=v: i @ v)
        check_rule([helper.make_node("MatMul", names, ["y"])], x, by_torch, {"v": vector}, in_double=True)


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


def test_a_batch_that_is_not_the_first_axis():
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=(1, 0, 2)),
        helper.make_node("MatMul", ["t", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Transpose", ["a"], ["y"], perm=(1, 0, 2)),
    ]
    w, b = draws(4, 5, seed=1), draws(3, 1, 5, seed=2)
    weights, bias = torch.from_numpy(w).double(), torch.from_numpy(b[:, 0]).double()
    check_rule(nodes, draws(2, 3, 4), lambda i: i @ weights + bias, {"w": w, "b": b})


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 5), (3, 4, 1)])
def test_expand(shape):
    x = draws(2, 3, 1, 5)
    node = helper.make_node("Expand", ["x", "s"], ["y"])
    check_rule([node], x, lambda i: i.expand(torch.broadcast_shapes(i.shape, shape)) * 1, {"s": np.array(shape)})


@pytest.mark.parametrize("repeats", [(1, 2, 1, 3), (1, 1, 1, 1), (1, 3, 2, 1)])
def test_tile(repeats):
    node = helper.make_node("Tile", ["x", "r"], ["y"], name="tile")
    check_rule([node], draws(2, 3, 2, 4), lambda i: i.repeat(*repeats), {"r": np.array(repeats)}, in_double=True)


@pytest.mark.parametrize("read", [(0, 1, 2), (0, 2), (1,)])
@pytest.mark.parametrize("axis", [1, -1])
def test_split_where_some_parts_are_read_and_others_are_not(read, axis):
    """Each part is read by its own power, so an exchange of parts would show."""
    nodes = [helper.make_node("Split", ["x", "sizes"], ["p0", "p1", "p2"], name="split", axis=axis)]
    nodes += [helper.make_node("Pow", [f"p{k}", f"e{k}"], [f"q{k}"]) for k in read]
    nodes.append(helper.make_node("Concat", [f"q{k}" for k in read], ["y"], axis=axis))
    constants = {f"e{k}": np.float32(k + 1) for k in read} | {"sizes": np.array([1, 3, 2])}

    def by_torch(image):
        parts = image.split([1, 3, 2], axis)
        return torch.cat([parts[k] ** (k + 1) for k in read], axis)

    check_rule(nodes, draws(2, 6, 6), by_torch, constants, tolerance=1e-5)


def test_split_in_equal_parts_of_which_one_is_read_twice():
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("Sub", ["c", "a"], ["y"]),
    ]
    check_rule(nodes, draws(2, 6, 3), lambda i: i[:, :3] * i[:, 3:] - i[:, :3])


def test_split_of_the_batch_is_refused():
    node = helper.make_node("Split", ["x", "s"], ["y", "z"], name="odd")
    model = one_operator([node], draws(2, 3), (1, 3), {"s": np.array([1, 1])})
    with pytest.raises(UnsupportedOperator, match=r"odd.*Split of the batch"):
        differentiate(model, "y", "x")


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode):
    node = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=mode)

    def by_torch(image):
        batch, channels, rows, columns = image.shape
        parts = (2, 2, channels // 4) if mode == "DCR" else (channels // 4, 2, 2)
        order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
        apart = image.reshape(batch, *parts, rows, columns).permute(order)
        return apart.reshape(batch, channels // 4, 2 * rows, 2 * columns)

    check_rule([node], draws(2, 8, 3, 2), by_torch)


def test_space_to_depth():
    node = helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2)

    def by_torch(image):
        batch, channels, rows, columns = image.shape
        apart = image.reshape(batch, channels, rows // 2, 2, columns // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return apart.reshape(batch, channels * 4, rows // 2, columns // 2)

    check_rule([node], draws(2, 3, 4, 6), by_torch)
