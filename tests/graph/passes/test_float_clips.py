"""Clips of codes become Clips of the numbers before them, with the same codes behind, where they do anything."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from canonical_examples import INPUT_SCALE, CanonicalBuilder
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import FloatClips, SignedActivations, run_passes
from hardbit_deploy.errors import HardbitError
from lowering_examples import copy_of, images_for, lively, run, run_on
from tensorrt_examples import WIDTHS, symmetric_cnn, symmetric_residual_net


def quantizer(scale: np.float32, low: int | None, high: int | None) -> onnx.ModelProto:
    """numbers -> int8 codes, clipped -> numbers."""
    constants = [("s", np.float32(scale)), ("z", np.int8(0))]
    bounds = ["" if bound is None else name for name, bound in (("low", low), ("high", high))]
    constants += [(name, np.int8(bound)) for name, bound in (("low", low), ("high", high)) if bound is not None]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["codes"], name="quantize"),
        helper.make_node("Clip", ["codes", *bounds], ["clipped"], name="clip"),
        helper.make_node("DequantizeLinear", ["clipped", "s", "z"], ["y"], name="dequantize"),
    ]
    graph = helper.make_graph(
        nodes,
        "quantizer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@settings(max_examples=150, deadline=None)
@given(
    scale=st.floats(2.0**-60, 2.0**60, width=32),
    bounds=st.tuples(st.integers(-128, 127), st.integers(-128, 127)).map(sorted),
    seed=st.integers(0, 1000),
)
def test_every_scale_and_bound_gives_the_same_codes(scale: float, bounds: list[int], seed: int) -> None:
    model = quantizer(np.float32(scale), *bounds)
    after = run_passes(model, [FloatClips()], check_each=True)
    assert "Clip" not in operators(after)[1:]
    near = np.arange(-140, 141, dtype=np.float32)[:, None] + np.float32([-0.5, -0.25, 0, 0.25, 0.49999997, 0.5])
    random = np.random.default_rng(seed).normal(0, 100, 500).astype(np.float32)
    numbers = np.concatenate([near.ravel(), random]) * np.float32(scale)
    np.testing.assert_array_equal(run_on(after, numbers), run_on(model, numbers))


@pytest.mark.parametrize(
    ("low", "high", "left"),
    [
        (-128, 127, []),
        (None, 127, []),
        (None, None, []),
        (0, 127, ["Relu"]),
        (0, 15, ["Clip"]),
        (-8, 7, ["Clip"]),
        (-127, 127, ["Clip"]),
        (None, 7, ["Clip"]),
    ],
)
def test_a_bound_that_nothing_passes_is_left_out(low: int | None, high: int | None, left: list[str]) -> None:
    after = run_passes(quantizer(np.float32(0.25), low, high), [FloatClips()], check_each=True)
    assert operators(after) == [*left, "QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("example", [symmetric_cnn, symmetric_residual_net])
def test_values_are_preserved_and_a_relu_takes_its_clip_up(example, bits: int) -> None:
    before = lively(example(bits))
    after = run_passes(before, [SignedActivations(), FloatClips()], check_each=True)
    images = images_for(before)
    np.testing.assert_array_equal(run(after, images), run(before, images))
    relus = operators(before).count("Relu")
    assert operators(after).count("Relu") == (relus if bits == 7 else 0)
    for node in after.graph.node:
        if node.op_type == "Clip" and node.input[1]:
            assert OnnxGraph(after).constant(node.input[1]).dtype == np.float32


def test_averages_of_what_is_never_negative_need_no_lower_bound() -> None:
    after = run_passes(symmetric_residual_net(4), [SignedActivations(), FloatClips()])
    graph = OnnxGraph(after)
    quantize = next(node for node in graph.nodes if node.name == "pool.act.quantize")
    assert graph.producer(quantize.input[0]).op_type == "GlobalAveragePool"  # 7 bits: no upper bound either
    skip = next(node for node in graph.nodes if node.name == "block1.skip.quantize")
    clip = graph.producer(skip.input[0])
    assert [float(graph.operand(clip, index)) for index in (1, 2)] == [-1.0, 0.875]


def test_whoever_reads_the_codes_unclipped_goes_on_doing_so() -> None:
    b = CanonicalBuilder()
    x = b.quantize("image", "input", INPUT_SCALE, 4, signed=True)
    y = b.node("DequantizeLinear", ["input.codes", "input.scale", "input.zero_point"], "whole", "whole.dequantize")
    b.mark_bits(8)
    x = b.node("Flatten", [b.node("Add", [x, y], "sum", "add")], "flat", "flatten", axis=1)
    before = b.model(b.gemm(x, "fc", (3, 36), INPUT_SCALE, 8), (1, 6, 6), 3)
    after = run_passes(before, [FloatClips()], check_each=True)
    assert operators(after).count("QuantizeLinear") == 2
    images = images_for(before)
    np.testing.assert_array_equal(run(after, images), run(before, images))


def test_codes_of_another_form_are_refused() -> None:
    with pytest.raises(HardbitError, match=r"'act1.quantize' does not write int8 with zero point 0"):
        FloatClips().apply(symmetric_cnn(4))
    model = copy_of(quantizer(np.float32(1), 0, 3))
    model.graph.node[1].input[1] = "x"
    with pytest.raises(HardbitError, match="the bounds of 'clip' are not constant"):
        FloatClips().apply(model)
