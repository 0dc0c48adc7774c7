"""Which nodes have a rule: what is said of a graph agrees with what its attack graph does."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from canonical_examples import plain_cnn, residual_net
from gradient_reference import one_operator
from hardbit.graph.gradient import UnsupportedOperator, build_attack_graph, coverage, differentiate
from hardbit_deploy.errors import HardbitError

X = np.zeros((2, 3, 4, 4), np.float32)


def rows(nodes, constants=None, x=X, shape=X.shape):
    return {row.name: row for row in coverage(one_operator(nodes, x, shape, constants or {}))}


@pytest.mark.parametrize("network", [plain_cnn, residual_net])
def test_a_network_of_ours_is_covered_and_its_weights_are_constants(network):
    model = network(4)
    found = coverage(model)
    assert [row.name for row in found] == [node.name for node in model.graph.node]
    assert {row.status for row in found} == {"covered", "not on the path"}
    constant = [row for row in found if row.status == "not on the path"]
    assert all(row.operator == "DequantizeLinear" and row.reason == "it is a constant" for row in constant)


def test_everything_that_is_missing_is_found_at_once():
    nodes = [
        helper.make_node("Sinh", ["x"], ["a"], name="no rule"),
        helper.make_node("Relu", ["a"], ["b"], name="fine"),
        helper.make_node("Conv", ["b", "b"], ["c"], name="no constant weights"),
        helper.make_node("Dropout", ["b", "", "true"], ["y"], name="in training"),
        helper.make_node("Shape", ["x"], ["s"], name="beside"),
    ]
    found = rows(nodes, {"true": np.array(True)})
    assert {name: row.status for name, row in found.items()} == {
        "no rule": "missing",
        "fine": "covered",
        "no constant weights": "not on the path",
        "in training": "missing",
        "beside": "not on the path",
    }
    assert found["no rule"].reason == "the operator Sinh has no gradient rule"
    assert found["in training"].reason == "Dropout in training mode"
    assert found["beside"].reason == "its value does not lie between the image and the logits"


def test_a_node_without_a_name_goes_by_its_output():
    assert list(rows([helper.make_node("Relu", ["x"], ["y"])])) == ["y"]


def test_an_operator_of_a_later_opset_is_one_node():
    model = one_operator([helper.make_node("Identity", ["x"], ["y"], name="gelu")], X, X.shape, {})
    model.graph.node[0].op_type, model.opset_import[0].version = "Gelu", 20
    assert [(row.name, row.operator, row.status) for row in coverage(model)] == [("gelu", "Gelu", "covered")]


def test_a_part_of_several_outputs_counts_for_the_node():
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b"], name="split", axis=1),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]
    found = rows(nodes, {"sizes": np.array([1, 2])}, shape=(2, 2, 4, 4))
    assert {row.status for row in found.values()} == {"covered"}


def test_an_earlier_opset_is_refused():
    model = one_operator([helper.make_node("Relu", ["x"], ["y"])], X, X.shape, {})
    model.opset_import[0].version = 13
    with pytest.raises(HardbitError, match="opset 13"):
        coverage(model)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Relu", ["x"], ["y"], name="node"),
        helper.make_node("Sinh", ["x"], ["y"], name="node"),
        helper.make_node("Cast", ["x"], ["y"], name="node", to=TensorProto.FLOAT),
        helper.make_node("CumSum", ["x", "axis"], ["y"], name="node"),
        helper.make_node("Softmax", ["x"], ["y"], name="node"),
    ],
    ids=lambda node: node.op_type,
)
def test_a_node_is_covered_where_it_can_be_differentiated(node):
    model = one_operator([node], X, X.shape, {"axis": np.array(1)} if node.op_type == "CumSum" else {})
    try:
        differentiate(model, "y", "x")
        status = "covered"
    except UnsupportedOperator:
        status = "missing"
    assert coverage(model)[0].status == status


def test_what_is_said_of_a_network_is_what_its_attack_graph_says():
    model = plain_cnn(4)
    next(node for node in model.graph.node if node.name == "relu1").op_type = "Sinh"
    missing = [row.name for row in coverage(model) if row.status == "missing"]
    assert missing == ["relu1"]
    with pytest.raises(UnsupportedOperator, match="relu1"):
        build_attack_graph(model)
