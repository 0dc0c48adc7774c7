"""What preparation rewrites computes the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from float_networks import NETWORKS, FloatBuilder
from hardbit.ptq.preparation import prepare
from lowering_examples import images_for, run


@pytest.mark.parametrize("name", NETWORKS)
def test_prepared_networks_compute_the_same(name: str) -> None:
    model = NETWORKS[name](seed=3)
    images = images_for(model, 16)
    np.testing.assert_allclose(run(prepare(model), images), run(model, images), rtol=1e-4, atol=1e-4)


def test_a_matrix_product_on_tokens_becomes_a_gemm_on_rows() -> None:
    kinds = Counter(node.op_type for node in prepare(NETWORKS["tokens"]()).graph.node)
    assert kinds["MatMul"] == 2  # of two activations
    assert kinds["Gemm"] == 5
    assert kinds["Add"] == 2  # the front's, and the residual sum


def scaled_network(shift: np.ndarray, factor: np.ndarray) -> onnx.ModelProto:
    """A convolution without bias, a constant subtracted and a constant multiplied."""
    b = FloatBuilder(1)
    weight = b.constant("w", b.rng.normal(0, 1, (6, 3, 3, 3)).astype(np.float32))
    x = b.node("Conv", ["image", weight], "conv", kernel_shape=[3, 3])
    x = b.node("Mul", [b.node("Sub", [x, b.constant("shift", shift)], "sub"), b.constant("factor", factor)], "mul")
    return b.model(b.gemm(b.node("Flatten", [x], "flatten", axis=1), "fc", 6 * 14 * 14, 10))


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), ()])
def test_constants_for_each_channel_move_into_the_layer(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    model = scaled_network(rng.normal(0, 1, shape).astype(np.float32), rng.normal(0, 1, shape).astype(np.float32))
    prepared = prepare(model)
    assert not {"Sub", "Mul"} & {node.op_type for node in prepared.graph.node}
    images = images_for(model, 4)
    np.testing.assert_allclose(run(prepared, images), run(model, images), rtol=1e-4, atol=1e-3)


def test_constants_for_each_column_stay() -> None:
    columns = np.random.default_rng(0).normal(0, 1, (1, 1, 1, 14)).astype(np.float32)
    kinds = {node.op_type for node in prepare(scaled_network(columns, columns)).graph.node}
    assert {"Sub", "Mul"} <= kinds


def test_constant_nodes_become_initializers_and_every_node_gets_a_name() -> None:
    model = NETWORKS["plain"]()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.w")
    value = numpy_helper.from_array(numpy_helper.to_array(weight))
    model.graph.initializer.remove(weight)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["conv1.w"], value=value))
    for node in model.graph.node:
        node.name = ""
    prepared = prepare(model)
    names = [node.name for node in prepared.graph.node]
    assert "Constant" not in {node.op_type for node in prepared.graph.node}
    assert len(set(names)) == len(names)
    assert all(names)
