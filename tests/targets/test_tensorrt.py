"""Lowered for TensorRT, a graph has the bits of the canonical one and the form that TensorRT keeps in INT8; or it is
refused by the node's name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from onnx import TensorProto

from canonical_examples import plain_cnn, residual_net
from graph_strategies import small_graphs
from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.graph.quantized_layers import quantized_layers
from hardbit.targets import integer_nodes, lower
from hardbit_deploy.errors import HardbitError
from lowering_examples import images_for, lively, run
from tensorrt_examples import WIDTHS, run_engine, symmetric_cnn, symmetric_residual_net

TARGETS = ("tensorrt", "tensorrt_rtx")


def form_problems(model) -> list[str]:
    """What in an engine graph is not of the form that TensorRT's documentation asks for."""
    graph, found = OnnxGraph(model), []
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            codes, scale, zero_point = (graph.operand(node, index) for index in range(3))
            axis = attribute(node, "axis", None)
            weights = codes is not None and scale.shape == codes.shape[:1] and axis == 0
            if scale.dtype != np.float32 or not (weights or (scale.shape == () and axis is None)):
                found.append(f"{node.name}: scale {scale.shape} along {axis}")
            if zero_point.dtype != np.int8 or zero_point.any() or zero_point.shape != scale.shape:
                found.append(f"{node.name}: zero point")
            source = graph.producer(node.input[0])
            if node.op_type == "DequantizeLinear" and codes is None and node.input[0] != "image":
                found += [] if source.op_type == "QuantizeLinear" else [f"{node.name}: codes of {source.name}"]
        elif node.op_type == "Clip":
            found += [
                f"{node.name}: bound" for name in node.input[1:] if name and graph.constant(name).dtype != np.float32
            ]
    for layer in quantized_layers(graph):
        bias = graph.operand(layer.node, 2)
        found += [] if bias is None or bias.dtype == np.float32 else [f"{layer.node.name}: bias"]
    return found


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("example", [symmetric_cnn, symmetric_residual_net])
class TestExamples:
    def test_the_engine_has_the_bits_of_the_canonical_graph(self, example, bits: int) -> None:
        for canonical in (example(bits), lively(example(bits))):
            images = images_for(canonical, 64)
            np.testing.assert_array_equal(run_engine(lower(canonical, "tensorrt"), images), run(canonical, images))

    def test_it_has_the_form_that_tensorrt_keeps_in_int8(self, example, bits: int) -> None:
        canonical = example(bits)
        for target in TARGETS:
            engine = lower(canonical, target)
            assert form_problems(engine) == []
            assert {entry.key: entry.value for entry in engine.metadata_props}["hardbit.target"] == target

    def test_codes_in_logits_out_names_kept(self, example, bits: int) -> None:
        canonical = example(bits)
        before = canonical.SerializeToString(deterministic=True)
        engine = lower(canonical, "tensorrt")
        assert canonical.SerializeToString(deterministic=True) == before
        image, logits = engine.graph.input[0].type.tensor_type, engine.graph.output[0].type.tensor_type
        assert (engine.graph.input[0].name, engine.graph.output[0].name) == ("image", "logits")
        assert (image.elem_type, logits.elem_type) == (TensorProto.INT8, TensorProto.FLOAT)
        assert image.shape.dim[0].dim_param == logits.shape.dim[0].dim_param == "batch"
        declared = integer_nodes(canonical)
        assert declared == integer_nodes(engine) != []
        layers = [node.name for node in canonical.graph.node if node.op_type in ("Conv", "Gemm")]
        assert [node["name"] for node in declared] == layers


@settings(max_examples=60, deadline=None)
@given(small_graphs())
def test_random_graphs_keep_their_bits_or_are_refused_for_unsigned_bytes(canonical) -> None:
    unsigned_bytes = any(
        node.op_type == "QuantizeLinear" and node.metadata_props[0].value == "8" and "uint8" in str(zero.dtype)
        for node in canonical.graph.node
        if node.op_type == "QuantizeLinear"
        for zero in [OnnxGraph(canonical).operand(node, 2)]
    )
    if unsigned_bytes:
        with pytest.raises(HardbitError, match="8-bit unsigned codes"):
            lower(canonical, "tensorrt")
    assume(not unsigned_bytes)
    engine = lower(canonical, "tensorrt")
    images = images_for(canonical, 8)
    assert form_problems(engine) == []
    np.testing.assert_array_equal(run_engine(engine, images), run(canonical, images))


def test_unsigned_bytes_are_refused_with_the_reason() -> None:
    with pytest.raises(HardbitError, match=r"act1.quantize: 8-bit unsigned codes: TensorRT would read them as INT8"):
        lower(plain_cnn(8), "tensorrt")


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_networks_of_few_bits_made_for_onnxruntime_are_taken(bits: int) -> None:
    """But for what is averaged, which had 8 unsigned bits there."""
    with pytest.raises(HardbitError, match=r"pool.act.quantize"):
        lower(residual_net(bits), "tensorrt")
    canonical = lively(plain_cnn(bits))
    images = images_for(canonical)
    np.testing.assert_array_equal(run_engine(lower(canonical, "tensorrt"), images), run(canonical, images))
