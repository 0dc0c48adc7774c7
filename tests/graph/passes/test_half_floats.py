"""What declares itself float computes in float16, and nothing else does; the change is reported."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from canonical_examples import INPUT_SCALE, CanonicalBuilder
from hardbit.graph.binary_quantizer import SHIFT
from hardbit.graph.export import export_canonical
from hardbit.graph.onnx_graph import OnnxGraph, float_reason, mark_float
from hardbit.graph.passes import HalfFloats, RemoveIdentities, run_passes
from hardbit.quantize import Bits, freeze
from hardbit_deploy.errors import HardbitError
from lowering_examples import images_for, run
from quantized_examples import calibrated
from tensorrt_examples import halves, rounding_to_half, symmetric_residual_net


def float_tail(factor: float = 3.0) -> onnx.ModelProto:
    """A Gemm of codes, and logits = rectified (fc * factor) + 0.1, which declare themselves float."""
    b = CanonicalBuilder()
    x = b.quantize("image", "input", INPUT_SCALE, 8, signed=True)
    x = b.gemm(b.node("Flatten", [x], "flat", "flatten", axis=1), "fc", (3, 36), INPUT_SCALE, 8)
    x = b.node("Mul", [x, b.constant("factor", np.float32(factor))], "scaled", "mul")
    mark_float(b.nodes[-1], "a product of floats")
    x = b.node("Relu", [x], "rectified", "relu")
    x = b.node("Add", [x, b.constant("shift", np.float32(0.1))], "shifted", "add")
    mark_float(b.nodes[-1], "a sum of floats")
    return b.model(x, (1, 6, 6), 3)


def emulated(products: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tail in numpy, every result rounded to float16."""
    scaled = np.float16(products) * np.float16(3)
    return (np.maximum(scaled, np.float16(0)) + np.float16(0.1)).astype(np.float32)


def test_the_numbers_are_those_of_float16_and_the_change_is_told() -> None:
    before, changes = float_tail(), []
    after = run_passes(before, [RemoveIdentities(), HalfFloats()], changes.append, check_each=True)
    assert changes == ["computed in float16, not in float32: mul, relu, add"]
    images = images_for(before)
    codes = onnx.ModelProto.FromString(before.SerializeToString())
    codes.graph.node[-1].input[0] = "fc.out"  # the Identity that names the logits
    products = run(codes, images)
    assert halves(after) >= {"mul", "relu", "add"}
    np.testing.assert_array_equal(run(rounding_to_half(after), images), emulated(products))
    assert np.any(run(rounding_to_half(after), images) != run(before, images))


@pytest.mark.parametrize("bits", [Bits(8, 7), Bits(32, 32, 32, 32)], ids=["w8a7", "float"])
def test_a_transformer_says_the_same_with_its_float_parts_in_float16(bits: Bits) -> None:
    twin = freeze(calibrated("vit", bits, profile="tensorrt", width=24, depth=1, heads=3))
    before = export_canonical(twin, (3, 32, 32), profile="tensorrt")
    after = run_passes(before, [HalfFloats()], check_each=True)
    declared = {n.name for n in before.graph.node if float_reason(n) not in (None, SHIFT)}
    assert declared <= halves(after)
    kept = {node.name for node in OnnxGraph(before).nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert not kept & halves(after)
    images = images_for(before, 32)
    expected, found = run(before, images), run(rounding_to_half(after), images)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.9


def test_a_network_without_float_parts_is_left_as_it_is() -> None:
    model, changes = symmetric_residual_net(), []
    assert HalfFloats().apply(model, changes.append).graph.node == model.graph.node
    assert changes == []


def test_a_constant_beyond_float16_is_refused_by_name() -> None:
    with pytest.raises(HardbitError, match=r"^mul: its constant 'factor' reaches 1e\+05, float16 ends at 65504"):
        HalfFloats().apply(float_tail(1e5))
