"""Flatten and MaxPool work on codes, and the DequantizeLinear follows them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from canonical_examples import INPUT_SCALE, CanonicalBuilder, plain_cnn
from graph_strategies import small_graphs
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import DequantizeLate, run_passes
from hardbit_deploy.errors import HardbitError
from lowering_examples import executed, images_for, run, with_constants


@settings(max_examples=40, deadline=None)
@given(small_graphs())
def test_values_are_preserved(model: onnx.ModelProto) -> None:
    after = run_passes(model, [DequantizeLate()], check_each=True)
    images = images_for(model, 8)
    np.testing.assert_array_equal(run(after, images), run(model, images))


def test_pooling_and_flattening_read_codes() -> None:
    graph = OnnxGraph(DequantizeLate().apply(plain_cnn(4)))
    readers = {
        node.name: graph.producer(node.input[0]).op_type
        for node in graph.nodes
        if node.op_type != "Identity" and graph.producer(node.input[0]) is not None
    }
    assert readers["pool"] == readers["flatten"] == "Clip"
    assert readers["conv2"] == readers["fc1"] == "DequantizeLinear"


def test_another_reader_of_the_numbers_keeps_them() -> None:
    b = CanonicalBuilder()
    x = b.quantize("image", "input", INPUT_SCALE, 8, signed=True)
    pooled = b.node("MaxPool", [x], "pooled", "pool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    x = b.node("Add", [x, pooled], "sum", "add")
    x = b.quantize(x, "sum.act", INPUT_SCALE * 2, 8, signed=True)
    x = b.node("Flatten", [x], "flat", "flatten", axis=1)
    model = b.model(b.gemm(x, "fc", (3, 36), INPUT_SCALE * 2, 8), (1, 6, 6), 3)
    after = run_passes(model, [DequantizeLate()], check_each=True)
    names = [node.name for node in after.graph.node]
    assert {"input.dequantize", "pool.dequantize"} <= set(names)
    images = images_for(model, 16)
    np.testing.assert_array_equal(run(after, images), run(model, images))


@pytest.mark.parametrize("bits", [8, 4])
def test_without_it_a_gemm_after_flatten_runs_in_float(bits: int) -> None:
    before = plain_cnn(bits)
    assert executed(before)["fc1"] == "Gemm"
    assert executed(DequantizeLate().apply(before))["fc1"] == "QGemm"


def test_a_negative_scale_would_turn_the_maximum_round_and_is_refused() -> None:
    model = with_constants(plain_cnn(4), {"act1.scale": np.float32(-0.5)})
    with pytest.raises(HardbitError, match=r"the scale of 'act1.dequantize', before 'pool'"):
        DequantizeLate().apply(model)
