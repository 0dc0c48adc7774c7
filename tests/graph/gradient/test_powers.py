"""Elementary functions against torch.autograd where they are smooth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from onnx import helper

from gradient_reference import check_rule, for_all

MANY = pytest.mark.parametrize("examples", [8, pytest.param(200, marks=pytest.mark.slow)])
FUNCTIONS = {
    "Abs": torch.abs,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Sqrt": torch.sqrt,
}
OF_POSITIVE = {"Log", "Sqrt"}


def draws(shape, seed, positive):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.abs(x) + np.float32(0.1) if positive else np.where(np.abs(x) < 0.1, np.float32(0.5), x)


@pytest.mark.parametrize("operator", sorted(FUNCTIONS))
@MANY
def test_of_one_operand(operator, examples):
    def holds(case):
        shape, seed = case
        x = draws((2, *shape), seed, operator in OF_POSITIVE)
        check_rule([helper.make_node(operator, ["x"], ["y"])], x, FUNCTIONS[operator], tolerance=1e-5)

    for_all(st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 99)), holds, examples)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 1.0, 0.5, -1.5, 0.0])
def test_a_constant_exponent(exponent):
    x = draws((2, 3, 4), 0, positive=exponent not in (2.0, 3.0))
    node = helper.make_node("Pow", ["x", "e"], ["y"])
    check_rule([node], x, lambda i: i**exponent, {"e": np.float32(exponent)}, tolerance=1e-5)


def test_whole_numbers_and_one_exponent_for_each_channel():
    node, x = helper.make_node("Pow", ["x", "e"], ["y"]), draws((2, 3, 4), 0, positive=False)
    check_rule([node], x, lambda i: i**2, {"e": np.array(2, np.int64)})
    exponents = np.array([[1], [2], [3]], np.float32)
    by_torch = lambda i: i ** torch.from_numpy(exponents).double()  # noqa: E731
    check_rule([node], x, by_torch, {"e": exponents}, tolerance=1e-5)


def test_an_image_in_the_exponent_and_in_both_places():
    x, base = draws((2, 3, 4), 0, positive=True), np.array([[0.5], [1.0], [3.0]], np.float32)
    constant = torch.from_numpy(base).double()
    check_rule([helper.make_node("Pow", ["b", "x"], ["y"])], x, lambda i: constant**i, {"b": base}, tolerance=1e-5)
    check_rule([helper.make_node("Pow", ["x", "x"], ["y"])], x, lambda i: i**i, tolerance=1e-5)


def test_the_square_of_zero_has_a_slope_of_zero():
    x = np.array([[0.0, -1.0, 2.0]], np.float32)
    check_rule([helper.make_node("Pow", ["x", "e"], ["y"])], x, lambda i: i * i, {"e": np.float32(2)})
