"""Sign and rounding: what stands for their derivative, which is 0 wherever it exists."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from gradient_reference import differentiate, one_operator, run
from hardbit.graph.gradient import build_attack_graph
from hardbit_deploy.errors import HardbitError

POINTS = np.array([[-7.0, -1.5, -1.0, -0.5, 0.0, 0.49, 0.5, 1.0, 1.5, 7.0]], np.float32)
SEED = np.arange(1.0, 11.0, dtype=np.float32)[None]


def pulled(nodes, constants=None, **options):
    model = one_operator(nodes, POINTS, POINTS.shape, constants or {})
    return run(differentiate(model, "y", "x", **options), {"x": POINTS, "grad_output": SEED})["gradient"]


def test_a_sign_passes_the_gradient_where_its_input_is_small():
    node = helper.make_node("Sign", ["x"], ["y"])
    np.testing.assert_array_equal(pulled([node]), np.where(np.abs(POINTS) <= 1, SEED, 0))
    np.testing.assert_array_equal(pulled([node], straight_through="identity"), SEED)


@pytest.mark.parametrize("operator", ["Round", "Floor", "Ceil"])
def test_rounding_passes_the_gradient_as_it_is(operator):
    for choice in ("clipped", "identity"):
        np.testing.assert_array_equal(pulled([helper.make_node(operator, ["x"], ["y"])], straight_through=choice), SEED)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_sign_that_takes_the_zero_of_another_to_a_side_is_no_second_choice(swapped):
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node("Add", ["shift", "s"] if swapped else ["s", "shift"], ["a"]),
        helper.make_node("Sign", ["a"], ["y"]),
    ]
    shift = {"shift": np.float32(0.1)}
    np.testing.assert_array_equal(pulled(nodes, shift), np.where(np.abs(POINTS) <= 1, SEED, 0))
    larger = pulled(nodes, {"shift": np.float32(1.0)})  # here the second one decides anew
    np.testing.assert_array_equal(larger, np.where((POINTS <= 0) & (POINTS >= -1), SEED, 0))


def test_an_unknown_choice_is_refused():
    model = one_operator([helper.make_node("Sign", ["x"], ["y"])], POINTS, POINTS.shape, {})
    with pytest.raises(HardbitError, match="no straight-through 'tanh'; known: clipped, identity"):
        build_attack_graph(model, straight_through="tanh")
