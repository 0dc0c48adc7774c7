"""Operators that came or changed after opset 18, and models of later opsets."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.nn import functional

from gradient_reference import one_operator, relative_error, run, vector_jacobian
from hardbit.graph.gradient import UnsupportedOperator, differentiate
from hardbit.graph.gradient.later_operators import in_opset_18
from hardbit_deploy.errors import HardbitError


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def of_opset(version, nodes, x, shape, constants=None):
    model = one_operator([helper.make_node("Identity", ["x"], ["y"])], x, x.shape, {})
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in (constants or {}).items())
    for axis, size in enumerate(shape):
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = size
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.opset_import[0].version = version
    if version > 18:  # onnx calls GroupNormalization of 18 deprecated
        onnx.checker.check_model(model, full_check=True)
    return model


def check(model, x, function):
    """As the reference's check of a rule, for a model of any opset."""
    y = function(torch.from_numpy(x).double()).numpy()
    v = draws(*y.shape, seed=1)
    product = differentiate(model, "y", "x")
    assert [entry.version for entry in product.opset_import] == [18]
    result = run(product, {"x": x, "grad_output": v})
    assert relative_error(result["y"], y) < 1e-5
    assert relative_error(result["gradient"], vector_jacobian(function, x, v)) < 1e-5


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    x = np.linspace(-9, 9, 200, dtype=np.float32).reshape(2, 100)
    nodes = [helper.make_node("Gelu", ["x"], ["h"], approximate=approximate), helper.make_node("Gelu", ["h"], ["y"])]
    model = of_opset(20, nodes, x, x.shape)
    check(model, x, lambda i: functional.gelu(functional.gelu(i, approximate=approximate)))


@pytest.mark.parametrize("version", [18, 21])
@pytest.mark.parametrize(("groups", "shape"), [(1, (2, 6, 4, 5)), (3, (2, 6, 4, 5)), (6, (2, 6, 4, 5)), (2, (2, 6, 7))])
def test_group_normalization_with_a_scale_for_each_group_or_channel(version, groups, shape):
    x, count = draws(*shape), groups if version == 18 else 6
    scale, bias = draws(count, seed=1), draws(count, seed=2)
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=groups, epsilon=1e-3)
    weights = [torch.from_numpy(np.repeat(value, 6 // count)).double() for value in (scale, bias)]
    model = of_opset(version, [node], x, shape, {"s": scale, "b": bias})
    check(model, x, lambda i: functional.group_norm(i, groups, *weights, eps=1e-3))


def test_a_model_of_opset_18_is_left_as_it_is():
    model = of_opset(18, [helper.make_node("Relu", ["x"], ["y"])], draws(2, 3), (2, 3))
    assert in_opset_18(model) is model


def test_an_operator_that_means_something_else_later_is_refused_by_name():
    x = draws(2, 3, 4, 4)
    node = helper.make_node("DeformConv", ["x", "w", "o"], ["y"], name="odd", kernel_shape=[1, 1])
    model = of_opset(18, [helper.make_node("Relu", ["x"], ["y"])], x, x.shape)
    model.graph.node.insert(0, node)
    model.graph.node[0].output[0] = "elsewhere"
    model.opset_import[0].version = 19
    with pytest.raises(UnsupportedOperator, match=r"odd.*DeformConv of opset 19"):
        in_opset_18(model)


@pytest.mark.parametrize("version", [13, 22])
def test_other_opsets_are_refused(version):
    model = one_operator([helper.make_node("Relu", ["x"], ["y"])], draws(2, 3), (2, 3), {})
    model.opset_import[0].version = version
    with pytest.raises(HardbitError, match=rf"opset {version}.*opset 18.*version_converter"):
        in_opset_18(model)
