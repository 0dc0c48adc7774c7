"""Activation functions against torch's own, between their kinks and at them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from onnx import helper
from torch.nn import functional

from gradient_reference import check_rule, for_all

MANY = pytest.mark.parametrize("examples", [10, pytest.param(200, marks=pytest.mark.slow)])
POINTS = np.array([[-40.0, -3.5, -2.0, -1.0, -0.5, -1e-3, 1e-3, 0.25, 0.75, 1.0, 2.5, 3.5, 40.0]], np.float32)
UNPARAMETERISED = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Selu": functional.selu,
}


@st.composite
def values(draw):
    """A batch of any shape and spread."""
    shape = (2, *(draw(st.integers(1, 5)) for _ in range(draw(st.integers(1, 3)))))
    spread = draw(st.sampled_from([0.1, 1.0, 5.0]))
    return (np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape) * spread).astype(np.float32)


@pytest.mark.parametrize("operator", sorted(UNPARAMETERISED))
@MANY
def test_without_parameters(operator, examples):
    function, node = UNPARAMETERISED[operator], helper.make_node(operator, ["x"], ["y"])
    check_rule([node], POINTS, function)
    for_all(values(), lambda x: check_rule([node], x, function, tolerance=1e-5), examples)


@st.composite
def parameterised(draw):
    """An operator, its attributes, and what torch makes of them."""
    alpha = draw(st.sampled_from([0.05, 0.3, 1.0, 2.0]))
    return draw(values()), *draw(
        st.sampled_from(
            [
                ("LeakyRelu", {"alpha": alpha}, lambda x: functional.leaky_relu(x, alpha)),
                ("Elu", {"alpha": alpha}, lambda x: functional.elu(x, alpha)),
                ("Celu", {"alpha": alpha}, lambda x: functional.celu(x, alpha)),
                (
                    "Selu",
                    {"alpha": alpha, "gamma": 1.5},
                    lambda x: 1.5 * torch.where(x > 0, x, alpha * (torch.exp(x.clamp(max=0)) - 1)),
                ),
                ("ThresholdedRelu", {"alpha": alpha}, lambda x: functional.threshold(x, alpha, 0.0)),
                (
                    "HardSigmoid",
                    {"alpha": alpha, "beta": 0.4},
                    lambda x: functional.relu(1 - functional.relu(1 - (alpha * x + 0.4))),
                ),
            ]
        )
    )


@MANY
def test_with_parameters(examples):
    def holds(case):
        x, operator, options, function = case
        check_rule([helper.make_node(operator, ["x"], ["y"], **options)], x, function, tolerance=1e-5)

    for_all(parameterised(), holds, examples * 3)


@pytest.mark.parametrize(
    ("operator", "function"),
    [
        ("LeakyRelu", lambda x: functional.leaky_relu(x, 0.01)),
        ("Elu", functional.elu),
        ("Celu", functional.celu),
        ("ThresholdedRelu", lambda x: functional.threshold(x, 1.0, 0.0)),
        (
            "HardSigmoid",
            lambda x: torch.where((0.2 * x + 0.5 > 0) & (0.2 * x + 0.5 < 1), 0.2 * x + 0.5, (x > 0).double()),
        ),
    ],
)
def test_the_defaults_of_the_specification_and_the_kinks(operator, function):
    kinks = np.array([[-2.5, 0.0, 1.0, 2.5]], np.float32)
    for x in (POINTS, kinks):
        check_rule([helper.make_node(operator, ["x"], ["y"])], x, function)


@pytest.mark.parametrize("shape", [(1,), (3, 1, 1), (1, 3, 4, 5)])
def test_a_slope_for_each_channel(shape):
    rng = np.random.default_rng(0)
    x, slope = rng.standard_normal((2, 3, 4, 5)).astype(np.float32), rng.uniform(0, 1, shape).astype(np.float32)
    weights = torch.from_numpy(slope).double()
    check_rule(
        [helper.make_node("PRelu", ["x", "s"], ["y"])], x, lambda i: torch.where(i > 0, i, weights * i), {"s": slope}
    )
