"""Identity nodes go, inside the graph and at its end."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from onnx import TensorProto, helper

from canonical_examples import residual_net
from graph_strategies import small_graphs
from hardbit.graph.passes import RemoveIdentities, run_passes
from lowering_examples import copy_of, images_for, run


def with_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """An Identity after every node that does not have one."""
    changed = copy_of(model)
    del changed.graph.node[:]
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        for index, name in enumerate(copy.input):
            copy.input[index] = renamed.get(name, name)
        changed.graph.node.append(copy)
        if copy.output[0] != "logits":
            renamed[copy.output[0]] = f"{copy.output[0]}.same"
            changed.graph.node.append(
                helper.make_node("Identity", [copy.output[0]], [renamed[copy.output[0]]], name=f"{copy.name}.same")
            )
    return changed


@settings(max_examples=15, deadline=None)
@given(small_graphs())
def test_values_are_preserved(model: onnx.ModelProto) -> None:
    before = with_identities(model)
    after = run_passes(before, [RemoveIdentities()], check_each=True)
    assert "Identity" not in {node.op_type for node in after.graph.node}
    assert len(after.graph.node) == len(model.graph.node) - 1
    images = images_for(model, 8)
    np.testing.assert_array_equal(run(after, images), run(before, images))


def test_the_last_layer_writes_the_output_under_its_name() -> None:
    after = RemoveIdentities().apply(residual_net())
    assert after.graph.node[-1].name == "fc"
    assert after.graph.node[-1].output[0] == "logits"


def test_a_tensor_read_elsewhere_keeps_its_readers_when_it_becomes_the_output() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["x"], name="relu"),
            helper.make_node("Identity", ["x"], ["first"], name="first"),
            helper.make_node("Add", ["x", "first"], ["second"], name="add"),
        ],
        "two outputs",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("first", "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    after = run_passes(model, [RemoveIdentities()])
    assert [(node.op_type, list(node.input)) for node in after.graph.node] == [
        ("Relu", ["image"]),
        ("Add", ["first", "first"]),
    ]


def test_an_identity_that_names_the_input_as_output_stays() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["logits"], name="logits")],
        "nothing",
        [value("image", TensorProto.FLOAT, [2])],
        [value("logits", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert len(run_passes(model, [RemoveIdentities()]).graph.node) == 1
