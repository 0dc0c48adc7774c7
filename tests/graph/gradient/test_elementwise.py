"""Sums, products, quotients, extremes and choices, broadcasting in both directions, and the kinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from onnx import TensorProto, helper

from gradient_reference import check_rule, differentiate, for_all, one_operator, run
from hardbit.graph.gradient import UnsupportedOperator

MANY = pytest.mark.parametrize("examples", [25, pytest.param(400, marks=pytest.mark.slow)])
OPERATORS = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}


@st.composite
def broadcasts(draw):
    """Operator, shape of the image's tensor, shape of the other operand (axes may be 1 or missing), and the order."""
    shape = (2, *(draw(st.integers(1, 4)) for _ in range(3)))
    other = [draw(st.sampled_from([1, size])) for size in shape]
    other[0] = 1
    dropped = draw(st.integers(0, 3))
    return draw(st.sampled_from(sorted(OPERATORS))), shape, tuple(other[dropped:]), draw(st.booleans())


@MANY
def test_a_constant_operand(examples):
    def holds(case):
        operator, shape, other, swapped = case
        rng = np.random.default_rng(0)
        x, c = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(other).astype(np.float32)
        constant, apply = torch.from_numpy(c).double(), OPERATORS[operator]
        node = helper.make_node(operator, ["c", "x"] if swapped else ["x", "c"], ["y"])
        check_rule([node], x, lambda i: apply(constant, i) if swapped else apply(i, constant), {"c": c})

    for_all(broadcasts(), holds, examples)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
@pytest.mark.parametrize("swapped", [False, True])
def test_both_operands_depend_on_the_image_and_one_is_broadcast(operator, swapped):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    apply = OPERATORS[operator]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node(operator, ["m", "x"] if swapped else ["x", "m"], ["y"]),
    ]

    def by_torch(image):
        mean = image.mean((2, 3), keepdim=True)
        return apply(mean, image) if swapped else apply(image, mean)

    check_rule(nodes, x, by_torch, in_double=True)


def test_an_operand_of_itself():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    check_rule([helper.make_node("Mul", ["x", "x"], ["y"])], x, lambda i: i * i)
    check_rule([helper.make_node("Add", ["x", "x"], ["y"])], x, lambda i: i + i)


def test_an_image_that_is_broadcast_to_a_larger_constant():
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 1)).astype(np.float32)
    c = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)
    check_rule([helper.make_node("Mul", ["x", "c"], ["y"])], x, lambda i: i * torch.from_numpy(c).double(), {"c": c})


ONES = np.ones((1, 3), np.float32)
KINKS = np.array([[-2.0, -1.0, -0.5, -1e-30, 0.0, 1e-30, 0.5, 1.0, 2.0, -0.0]], np.float32)


def test_relu_at_and_around_its_kink():
    check_rule([helper.make_node("Relu", ["x"], ["y"])], KINKS, torch.relu)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 0.5), (-0.5, None), (None, 0.5)])
def test_clip_passes_on_its_bounds_as_clamp_does(low, high):
    constants = {name: np.float32(bound) for name, bound in (("l", low), ("h", high)) if bound is not None}
    inputs = ["x", "l" if low is not None else "", "h" if high is not None else ""]
    node = helper.make_node("Clip", inputs, ["y"], name="clip")
    check_rule([node], KINKS, lambda i: torch.clamp(i, low, high), constants)


def test_a_clip_that_no_value_reaches_needs_no_mask():
    nodes = [helper.make_node("Softmax", ["x"], ["s"]), helper.make_node("Clip", ["s", "l", "h"], ["y"], name="clip")]
    bounds = {"l": np.float32(-0.1), "h": np.float32(1.0)}
    check_rule(nodes, KINKS, lambda i: torch.softmax(i, -1), bounds)
    product = differentiate(one_operator(nodes, KINKS, KINKS.shape, bounds), "y", "x")
    assert not {"GreaterOrEqual", "LessOrEqual"} & {node.op_type for node in product.graph.node}


@st.composite
def operands(draw):
    """The image's shape, and shapes of two constants that are broadcast against it."""
    shape = (2, *(draw(st.integers(1, 4)) for _ in range(2)))
    return shape, [(1, *(draw(st.sampled_from([1, size])) for size in shape[1:])) for _ in range(2)]


SEVERAL = {
    "Sum": lambda a, b, c, d: a + b + c + d,
    "Mean": lambda a, b, c, d: (a + b + c + d) / 4,
    "Min": lambda a, b, c, d: torch.minimum(torch.minimum(a, b), torch.minimum(c, d)),
    "Max": lambda a, b, c, d: torch.maximum(torch.maximum(a, b), torch.maximum(c, d)),
}


@pytest.mark.parametrize("operator", sorted(SEVERAL))
@MANY
def test_several_operands_two_of_which_depend_on_the_image(operator, examples):
    def holds(case):
        shape, others = case
        rng = np.random.default_rng(0)
        x, *constants = (rng.standard_normal(size).astype(np.float32) for size in (shape, *others))
        nodes = [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
            helper.make_node(operator, ["b", "x", "c", "m"], ["y"]),
        ]
        b, c = (torch.from_numpy(value).double() for value in constants)
        by_torch = lambda i: SEVERAL[operator](b, i, c, i.mean(1, keepdim=True))  # noqa: E731
        named = {"b": constants[0], "c": constants[1], "axes": np.array([1], np.int64)}
        if shape[1] > 1 or operator in ("Sum", "Mean"):  # else the image ties with its own mean
            check_rule(nodes, x, by_torch, named, tolerance=1e-5)

    for_all(operands(), holds, examples // 2)


@pytest.mark.parametrize(("operator", "by_torch"), [("Min", torch.minimum), ("Max", torch.maximum)])
def test_equal_operands_share_the_gradient(operator, by_torch):
    x = np.array([[-1.0, 0.0, 0.0, 2.0]], np.float32)
    node = helper.make_node(operator, ["x", "zero"], ["y"])
    check_rule([node], x, lambda i: by_torch(i, torch.zeros(1).double()), {"zero": np.float32(0)})
    check_rule([helper.make_node(operator, ["x"], ["y"])], x, lambda i: i * 1)


@MANY
def test_where_by_a_constant_and_by_what_the_image_decides(examples):
    def holds(case):
        shape, (first, second) = case
        x, c = (np.random.default_rng(k).standard_normal(s).astype(np.float32) for k, s in enumerate((shape, first)))
        chosen, other = np.random.default_rng(2).random(second) > 0.5, torch.from_numpy(c).double()
        fixed, constants = torch.from_numpy(chosen), {"chosen": chosen, "c": c}
        node = helper.make_node("Where", ["chosen", "x", "c"], ["y"])
        check_rule([node], x, lambda i: torch.where(fixed, i, other), constants)
        nodes = [
            helper.make_node("Greater", ["x", "c"], ["bright"]),
            helper.make_node("Mul", ["x", "x"], ["square"]),
            helper.make_node("Where", ["bright", "square", "x"], ["y"]),
        ]
        check_rule(nodes, x, lambda i: torch.where(i > other, i * i, i), constants)

    for_all(operands(), holds, examples // 2)


def test_a_decision_that_becomes_a_number_is_refused():
    """Its gradient is 0: a network that hides behind it is not robust."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["bright"], name="odd"),
        helper.make_node("Cast", ["bright"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(UnsupportedOperator, match=r"odd.*Greater has no gradient rule: its derivative is 0"):
        differentiate(one_operator(nodes, KINKS, KINKS.shape, {"zero": np.float32(0)}), "y", "x")


def test_bounds_that_depend_on_the_image_are_refused():
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], name="odd", keepdims=0),
        helper.make_node("Clip", ["x", "", "m"], ["y"], name="clip"),
    ]
    with pytest.raises(UnsupportedOperator, match=r"clip.*upper bound depends on the image"):
        differentiate(one_operator(nodes, KINKS, KINKS.shape, {}), "y", "x")


def test_dropout_is_the_identity_but_in_training():
    node = helper.make_node("Dropout", ["x", "ratio"], ["y"], name="odd")
    check_rule([node], KINKS, lambda i: i * 1, {"ratio": np.float32(0.5)})
    node.input.append("training")
    constants = {"ratio": np.float32(0.5), "training": np.array(True)}
    with pytest.raises(UnsupportedOperator, match=r"odd.*training mode"):
        differentiate(one_operator([node], KINKS, KINKS.shape, constants), "y", "x")


def test_erf_and_the_gelu_that_is_made_of_it():
    x = np.linspace(-9, 9, 400, dtype=np.float32).reshape(2, 200)
    check_rule([helper.make_node("Erf", ["x"], ["y"])], x, torch.erf)
    nodes = [
        helper.make_node("Div", ["x", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["share"]),
        helper.make_node("Mul", ["x", "share"], ["product"]),
        helper.make_node("Mul", ["product", "half"], ["y"]),
    ]
    numbers = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    check_rule(nodes, x, torch.nn.functional.gelu, numbers)


def test_masks_of_consecutive_operators_are_joined():
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Clip", ["r", "", "h"], ["y"], name="clip")]
    check_rule(nodes, KINKS, lambda i: torch.clamp(torch.relu(i), max=1.0), {"h": np.float32(1.0)})


def test_a_cast_to_double_and_back():
    nodes = [
        helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["f"], ["y"]),
    ]
    check_rule(nodes, KINKS, lambda i: i * 1)


def test_a_tensor_with_three_readers_gets_the_sum():
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Mul", ["r", "x"], ["a"]),
        helper.make_node("Add", ["a", "r"], ["b"]),
        helper.make_node("Sub", ["b", "x"], ["y"]),
    ]
    check_rule(nodes, x, lambda i: torch.relu(i) * i + torch.relu(i) - i)


def test_an_output_that_ignores_the_image_has_a_gradient_of_zeros():
    model = one_operator([helper.make_node("Relu", ["c"], ["y"])], np.zeros((1, 4), np.float32), (1, 3), {"c": ONES})
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 3]))
    feeds = {"x": np.ones((5, 4), np.float32), "c": ONES, "grad_output": ONES}
    np.testing.assert_array_equal(run(differentiate(model, "y", "x"), feeds)["gradient"], np.zeros((5, 4)))
