"""Scales have no axis where there is one, and axis 0 where there are many; values stay."""

from __future__ import annotations

import numpy as np
import onnx

from canonical_examples import plain_cnn
from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.graph.passes import PlainScales, run_passes
from lowering_examples import constants, copy_of, images_for, run, with_constants


def with_axes() -> onnx.ModelProto:
    """Scales of shape [1] for activations and for the weights of one layer; an axis counted from the end."""
    values = {
        name: value.reshape(1)
        for name, value in constants(plain_cnn(4)).items()
        if value.ndim == 0 and name.endswith(("scale", "zero_point"))
    }
    values |= {"conv2.weight.scale": np.float32([0.25]), "conv2.weight.zero_point": np.zeros(1, np.int8)}
    model = with_constants(copy_of(plain_cnn(4)), values)
    for node in model.graph.node:
        if node.name == "conv1.weight.dequantize":
            node.attribute[0].i = -4
        if node.name in ("act1.quantize", "act1.dequantize"):
            node.attribute.append(onnx.helper.make_attribute("axis", 1))
    return model


def test_one_scale_has_no_axis_and_many_run_along_axis_0() -> None:
    graph = OnnxGraph(run_passes(with_axes(), [PlainScales()], check_each=True))
    nodes = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    seen = {
        node.name: (graph.operand(node, 1).shape, graph.operand(node, 2).shape, attribute(node, "axis", None))
        for node in nodes
    }
    assert seen["act1.quantize"] == seen["act1.dequantize"] == ((), (), None)
    assert seen["conv2.weight.dequantize"] == ((), (), None)
    assert seen["conv1.weight.dequantize"] == ((8,), (8,), 0)
    assert {shape for shape, _, axis in seen.values() if axis is None} == {()}


def test_values_are_preserved() -> None:
    before = with_axes()
    images = images_for(before)
    np.testing.assert_array_equal(run(run_passes(before, [PlainScales()]), images), run(before, images))


def test_plain_scales_are_left_as_they_are() -> None:
    assert PlainScales().apply(plain_cnn(4)).graph.node == plain_cnn(4).graph.node
