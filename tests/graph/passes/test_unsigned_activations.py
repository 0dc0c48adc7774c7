"""int8 activations become uint8 and stand for the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import helper

from canonical_examples import INPUT_SCALE, CanonicalBuilder, residual_net
from graph_strategies import small_graphs
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import DequantizeLate, RemoveNoopClips, UnsignedActivations, run_passes
from hardbit_deploy.errors import HardbitError
from lowering_examples import WIDTHS, constants, copy_of, executed, images_for, lively, run

ENOUGH_FOR_CONVOLUTIONS = [UnsignedActivations(), RemoveNoopClips(), DequantizeLate()]


def signed_after_relu(bits: int) -> onnx.ModelProto:
    """What a graph made for TensorRT looks like: int8 with zero point 0 also after a Relu."""
    b = CanonicalBuilder()
    x = b.quantize("image", "input", INPUT_SCALE, 8, signed=True)
    x = b.conv(x, "conv1", (4, 1, 3, 3), INPUT_SCALE, 8, strides=[1, 1], pads=[1, 1, 1, 1])
    x = b.node("Relu", [x], "relu.out", "relu")
    x = b.quantize(x, "act", 2.0**-9, bits, signed=True)  # fine enough to saturate
    x = b.node("Flatten", [x], "flatten.out", "flatten", axis=1)
    return lively(b.model(b.gemm(x, "fc", (3, 4 * 36), 2.0**-9, 8), (1, 6, 6), 3))


def asymmetric_after_relu() -> onnx.ModelProto:
    """int8 with zero point -128, as onnxruntime.quantization writes it."""
    model = signed_after_relu(8)
    for tensor in model.graph.initializer:
        if tensor.name == "act.zero_point":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int8(-128), tensor.name))
    return model


@settings(max_examples=40, deadline=None)
@given(small_graphs())
def test_values_are_preserved(model: onnx.ModelProto) -> None:
    after = run_passes(model, [UnsignedActivations()], check_each=True)
    images = images_for(model, 8)
    np.testing.assert_array_equal(run(after, images), run(model, images))


@pytest.mark.parametrize("model", [*map(signed_after_relu, WIDTHS), asymmetric_after_relu()])
def test_values_are_preserved_after_a_relu(model: onnx.ModelProto) -> None:
    after = run_passes(model, [UnsignedActivations()], check_each=True)
    images = images_for(model, 16)
    np.testing.assert_array_equal(run(after, images), run(model, images))


@pytest.mark.parametrize("model", [signed_after_relu(8), asymmetric_after_relu()])
def test_after_a_relu_the_zero_point_is_the_least_code(model: onnx.ModelProto) -> None:
    after = UnsignedActivations().apply(model)
    graph = OnnxGraph(after)
    zero_point = graph.operand(next(n for n in graph.nodes if n.name == "act.quantize"), 2)
    assert zero_point == 0
    assert zero_point.dtype == np.uint8


@pytest.mark.parametrize("bits", [7, 4, 3, 2])
def test_without_it_a_clipped_signed_branch_runs_in_float(bits: int) -> None:
    before = run_passes(residual_net(bits), [DequantizeLate()])
    assert executed(before)["block0.conv2"] == "Conv"
    assert executed(run_passes(before, ENOUGH_FOR_CONVOLUTIONS))["block0.conv2"] == "QLinearConv"


@pytest.mark.parametrize("bits", WIDTHS)
def test_without_it_int8_after_a_relu_runs_in_float(bits: int) -> None:
    before = run_passes(signed_after_relu(bits), [DequantizeLate()])
    assert executed(before)["conv1"] == "FusedConv"
    assert executed(run_passes(before, ENOUGH_FOR_CONVOLUTIONS))["conv1"] == "QLinearConv"


def test_bounds_and_zero_points_move_together() -> None:
    after = UnsignedActivations().apply(residual_net(4))
    graph = OnnxGraph(after)
    nodes = {node.name: node for node in graph.nodes}
    assert graph.operand(nodes["block0.branch.quantize"], 2) == 128
    assert graph.operand(nodes["block0.branch.dequantize"], 2) == 128
    clip = nodes["block0.branch.clip"]
    assert (graph.operand(clip, 1), graph.operand(clip, 2)) == (120, 135)
    assert constants(after)["stem.act.zero_point"] == 0  # unsigned already: untouched


def test_codes_read_by_arithmetic_are_refused() -> None:
    model = copy_of(residual_net(8))
    codes = helper.make_node("Cast", ["block0.branch.codes"], ["as.float"], name="cast", to=onnx.TensorProto.FLOAT)
    index = next(i for i, n in enumerate(model.graph.node) if n.name == "block0.branch.dequantize")
    model.graph.node.insert(index, codes)
    with pytest.raises(HardbitError, match=r"'block0.branch.quantize' are read by 'cast' \(Cast\)"):
        UnsignedActivations().apply(model)
