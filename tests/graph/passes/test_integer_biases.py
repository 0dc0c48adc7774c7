"""Every bias of a quantized layer is int32, in the unit of its accumulator, and what that changes is said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from numpy.typing import NDArray

from canonical_examples import plain_cnn, residual_net
from graph_strategies import small_graphs
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import DequantizeLate, IntegerBiases, UnsignedActivations, WidenWeightCodes, run_passes
from hardbit_deploy.errors import HardbitError
from lowering_examples import constants, executed, images_for, lively, run, with_constants
from passes_examples import with_float_biases

FOR_ENGINE = [UnsignedActivations(), DequantizeLate(), WidenWeightCodes(), IntegerBiases()]


def bias_codes_and_scale(model: onnx.ModelProto, layer: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    graph = OnnxGraph(model)
    node = next(node for node in graph.nodes if node.name == layer)
    dequantize = graph.producer(node.input[2])
    return graph.operand(dequantize, 0), graph.operand(dequantize, 1)


@settings(max_examples=30, deadline=None)
@given(small_graphs())
def test_values_are_preserved_where_the_bias_is_on_the_grid(model: onnx.ModelProto) -> None:
    changes: list[str] = []
    before = with_float_biases(model, factor=1)
    after = run_passes(before, [IntegerBiases()], changes.append, check_each=True)
    assert changes == []
    images = images_for(model, 8)
    np.testing.assert_array_equal(run(after, images), run(before, images))


@settings(max_examples=30, deadline=None)
@given(small_graphs())
def test_shifting_weights_and_biases_together_preserves_values(model: onnx.ModelProto) -> None:
    """Biases written in units of s_x * s_w / 8: once the codes are 8 times larger, the grids are the same."""
    finer = {
        name: (values / 8 if name.endswith("scale") else values * 8 + 3).astype(values.dtype)
        for name, values in constants(model).items()
        if "bias" in name and not name.endswith("zero_point")
    }
    small = {name: np.clip(codes, -15, 15) for name, codes in constants(model).items() if name.endswith("weight.codes")}
    assume(all(codes.any() for codes in small.values()))  # zero codes have no range to fill: see below
    before = with_constants(model, {**finer, **small})
    changes: list[str] = []
    after = run_passes(before, [WidenWeightCodes(), IntegerBiases()], changes.append, check_each=True)
    assert changes == []
    images = images_for(model, 8)
    np.testing.assert_array_equal(run(after, images), run(before, images))


def test_a_layer_without_weights_keeps_its_unit_and_reports_what_that_rounds() -> None:
    model = plain_cnn(4)
    dead = {"conv2.weight.codes": np.zeros_like(constants(model)["conv2.weight.codes"])}
    finer = {
        "conv2.bias.scale": constants(model)["conv2.bias.scale"] / 8,
        "conv2.bias.codes": constants(model)["conv2.bias.codes"] * 8 + 3,
    }
    changes: list[str] = []
    before = with_constants(model, {**dead, **finer})
    after = run_passes(before, [WidenWeightCodes(), IntegerBiases()], changes.append, check_each=True)
    assert len(changes) == 1
    assert changes[0].startswith("conv2: 12 of 12 biases rounded")
    assert "(0.38 units)" in changes[0]
    np.testing.assert_array_equal(constants(after)["conv2.weight.codes"], 0)


def test_a_rounded_bias_is_reported_with_its_size() -> None:
    changes: list[str] = []
    before = with_float_biases(plain_cnn(4), factor=1.03)
    after = run_passes(before, [IntegerBiases()], changes.append)
    assert [change.split(":")[0] for change in changes] == ["conv1", "conv2", "fc1", "fc2"]
    assert "units" in changes[0]
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        expected = np.rint(constants(plain_cnn(4))[f"{layer}.bias.codes"] * 1.03)
        np.testing.assert_array_equal(bias_codes_and_scale(after, layer)[0], expected)


def test_wider_weights_make_the_rounding_finer() -> None:
    before = with_float_biases(plain_cnn(2), factor=1.03)
    coarse = bias_codes_and_scale(run_passes(before, [IntegerBiases()]), "conv2")[1]
    fine = bias_codes_and_scale(run_passes(before, [WidenWeightCodes(), IntegerBiases()]), "conv2")[1]
    np.testing.assert_array_equal(coarse / fine, 64)  # codes -1, 0, 1 become -64, 0, 64


def test_without_it_a_last_gemm_with_a_float_bias_runs_in_float() -> None:
    before = with_float_biases(plain_cnn(4), factor=1)
    unfixed = executed(run_passes(before, FOR_ENGINE[:3]))
    assert (unfixed["fc1"], unfixed["fc2"]) == ("QGemm", "Gemm")  # fc1: its result is quantized
    assert executed(run_passes(before, FOR_ENGINE))["fc2"] == "QGemm"


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_the_engine_equals_the_rounded_graph_and_not_the_float_one(bits: int) -> None:
    before = with_float_biases(lively(plain_cnn(bits)), factor=1.03)
    after = run_passes(before, FOR_ENGINE)
    images = images_for(before)
    np.testing.assert_array_equal(run(after, images, optimised=True), run(after, images))
    assert np.any(run(after, images) != run(before, images))


def test_without_it_onnx_runtime_adds_a_gemm_bias_in_the_wrong_unit() -> None:
    """QGemm does not look at the bias' scale: four times the scale, the same logits."""
    model = lively(plain_cnn(4))
    foreign = with_constants(model, {"fc2.bias.scale": constants(model)["fc2.bias.scale"] * np.float32(4)})
    images = images_for(model, 16)
    unfixed = run_passes(foreign, FOR_ENGINE[:2])
    assert executed(unfixed)["fc2"] == "QGemm"
    assert np.all(run(unfixed, images, optimised=True) != run(foreign, images))
    fixed = run_passes(foreign, FOR_ENGINE)
    np.testing.assert_array_equal(run(fixed, images, optimised=True), run(foreign, images))


def test_without_it_a_convolution_with_a_bias_in_another_unit_runs_in_float() -> None:
    model = plain_cnn(4)
    foreign = with_constants(model, {"conv2.bias.scale": constants(model)["conv2.bias.scale"] * np.float32(4)})
    assert executed(run_passes(foreign, FOR_ENGINE[:2]))["conv2"] in ("Conv", "FusedConv")
    assert executed(run_passes(foreign, FOR_ENGINE))["conv2"] == "QLinearConv"


def test_a_bias_on_the_grid_is_left_alone() -> None:
    before = residual_net(4)
    after = IntegerBiases().apply(before)
    assert after.graph.SerializeToString(deterministic=True) == before.graph.SerializeToString(deterministic=True)


def test_a_bias_beyond_32_bits_is_refused_by_name() -> None:
    scale = np.full(12, 1e-30, np.float32)
    before = with_float_biases(plain_cnn(4), factor=1)
    with pytest.raises(HardbitError, match=r"conv2: a bias is .* does not fit into 32 bits"):
        IntegerBiases().apply(with_constants(before, {"conv2.weight.scale": scale}))


def test_a_computed_bias_is_refused_by_name() -> None:
    before = plain_cnn(4)
    index, conv = next((i, n) for i, n in enumerate(before.graph.node) if n.name == "conv2")
    relu = onnx.helper.make_node("Relu", [conv.input[2]], ["bias.relu"], name="bias.relu")
    before.graph.node.insert(index, relu)
    before.graph.node[index + 1].input[2] = "bias.relu"
    with pytest.raises(HardbitError, match=r"the bias of 'conv2' is neither"):
        IntegerBiases().apply(before)
