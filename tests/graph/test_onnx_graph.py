"""The index answers who makes and reads a tensor, also right after an edit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from canonical_examples import plain_cnn, residual_net
from hardbit.graph.onnx_graph import OnnxGraph, attribute, bits_of, mark_bits


@pytest.fixture
def graph() -> OnnxGraph:
    return OnnxGraph(residual_net(4))


def named(graph: OnnxGraph, name: str) -> onnx.NodeProto:
    return next(node for node in graph.nodes if node.name == name)


def test_producers_consumers_and_constants(graph: OnnxGraph) -> None:
    assert graph.producer("stem.act").name == "stem.act.dequantize"
    assert [node.name for node in graph.consumers("stem.act")] == ["block0.conv1", "block0.add"]
    assert graph.producer("image") is None
    assert graph.producer("stem.weight.codes") is None
    assert graph.constant("stem.act.high") == 15
    assert graph.constant("stem.act") is None
    assert graph.operand(named(graph, "stem"), 0) is None
    assert graph.operand(named(graph, "stem"), 7) is None
    assert [value.name for value in graph.inputs] == ["image"]
    assert graph.is_output("logits")
    assert not graph.is_output("image")


def test_a_node_that_reads_a_tensor_twice_is_one_consumer(graph: OnnxGraph) -> None:
    add = named(graph, "block0.add")
    graph.set_input(add, 0, "stem.act")
    assert [node.name for node in graph.consumers("stem.act")] == ["block0.conv1", "block0.add"]


def test_edits_keep_the_index_true(graph: OnnxGraph) -> None:
    relu = named(graph, "stem.relu")
    twice = helper.make_node("Relu", ["stem.relu.out"], ["twice"], name="twice")
    graph.insert_after(relu, twice)
    graph.replace_uses("stem.relu.out", "twice", [named(graph, "stem.act.quantize")])
    assert graph.producer("twice") is twice
    assert [node.name for node in graph.consumers("stem.relu.out")] == ["twice"]
    onnx.checker.check_model(graph.to_model(), full_check=True)

    graph.replace_uses("twice", "stem.relu.out")
    graph.remove(twice)
    assert graph.producer("twice") is None
    assert graph.to_model().SerializeToString(deterministic=True) == OnnxGraph(
        residual_net(4)
    ).to_model().SerializeToString(deterministic=True)


def test_names_that_are_taken_get_a_number(graph: OnnxGraph) -> None:
    assert graph.add_constant("fresh", np.float32(1)) == "fresh"
    assert graph.add_constant("fresh", np.float32(2)) == "fresh.2"
    assert graph.add_constant("stem.act", np.float32(3)) == "stem.act.2"
    assert graph.constant("fresh.2") == 2
    assert graph.unused_node_name("stem") == "stem.2"


def test_reading_and_writing_changes_nothing() -> None:
    model = plain_cnn(4)
    helper.set_model_props(model, {"hardbit.profile": "onnxruntime"})
    written = OnnxGraph(model).to_model()
    assert written.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_metadata_is_merged() -> None:
    model = plain_cnn(4)
    helper.set_model_props(model, {"hardbit.profile": "onnxruntime", "hardbit.format": "canonical-1"})
    graph = OnnxGraph(model)
    graph.set_metadata({"hardbit.format": "engine-1"})
    assert graph.metadata == {"hardbit.profile": "onnxruntime", "hardbit.format": "engine-1"}


def test_attributes_and_bits(graph: OnnxGraph) -> None:
    assert list(attribute(named(graph, "block1.conv1"), "strides", None)) == [2, 2]
    assert attribute(named(graph, "block1.conv1"), "group", 1) == 1
    assert bits_of(named(graph, "stem.act.quantize")) == 4
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    assert bits_of(node) is None
    mark_bits(node, None)
    assert not node.metadata_props
    mark_bits(node, 3)
    assert bits_of(node) == 3
