"""uint8 activations become int8 with zero point 0 and stand for the same numbers; those that cannot are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from canonical_examples import plain_cnn
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import SignedActivations, UnsignedActivations, run_passes
from hardbit_deploy.errors import HardbitError
from lowering_examples import copy_of, images_for, lively, run, with_constants
from tensorrt_examples import WIDTHS, symmetric_residual_net


def code_types(model: onnx.ModelProto) -> set[tuple[str, int]]:
    graph = OnnxGraph(model)
    zero_points = [graph.operand(node, 2) for node in graph.nodes if node.op_type == "QuantizeLinear"]
    return {(str(zero.dtype), int(zero)) for zero in zero_points}


@pytest.mark.parametrize("bits", WIDTHS)
def test_values_are_preserved(bits: int) -> None:
    before = lively(symmetric_residual_net(bits))
    after = run_passes(before, [SignedActivations()], check_each=True)
    assert code_types(after) == {("int8", 0)}
    images = images_for(before)
    np.testing.assert_array_equal(run(after, images), run(before, images))


@pytest.mark.parametrize("bits", WIDTHS)
def test_it_takes_back_what_unsigned_activations_did(bits: int) -> None:
    """int8 branches that another target wanted as uint8 with zero point 128 have their own codes again."""
    before = lively(symmetric_residual_net(bits))
    unsigned = run_passes(before, [UnsignedActivations()])
    assert ("uint8", 128) in code_types(unsigned)
    after = run_passes(unsigned, [SignedActivations()], check_each=True)
    assert code_types(after) == {("int8", 0)}
    images = images_for(before)
    np.testing.assert_array_equal(run(after, images), run(before, images))


def test_a_clip_without_a_lower_bound_gets_the_one_that_the_type_gave() -> None:
    model = copy_of(plain_cnn(4))
    clip = next(node for node in model.graph.node if node.name == "act1.clip")
    relu = next(node for node in model.graph.node if node.name == "relu1")
    relu.op_type, clip.input[1] = "Identity", ""  # negative numbers come to the quantizer
    after = run_passes(model, [SignedActivations()], check_each=True)
    graph = OnnxGraph(after)
    bounds = [graph.operand(next(n for n in graph.nodes if n.name == "act1.clip"), index) for index in (1, 2)]
    assert [(int(bound), bound.dtype) for bound in bounds] == [(0, np.int8), (15, np.int8)]
    images = images_for(model)
    np.testing.assert_array_equal(run(after, images), run(model, images))


def unsigned_bytes() -> onnx.ModelProto:
    return plain_cnn(8)


def codes_to_200() -> onnx.ModelProto:
    return with_constants(plain_cnn(4), {"act1.high": np.uint8(200)})


def another_zero_point() -> onnx.ModelProto:
    return with_constants(plain_cnn(4), {"act1.zero_point": np.uint8(9)})


def codes_read_by_arithmetic() -> onnx.ModelProto:
    model = copy_of(plain_cnn(4))
    index = next(i for i, node in enumerate(model.graph.node) if node.name == "act1.dequantize")
    cast = helper.make_node("Cast", ["act1.codes"], ["as.float"], name="cast", to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(index, cast)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (unsigned_bytes(), "the codes of 'act1.quantize' pass 127"),
        (codes_to_200(), "the codes of 'act1.quantize' pass 127"),
        (another_zero_point(), "the zero point of 'act1.quantize' is 9, neither 0 nor 128"),
        (codes_read_by_arithmetic(), r"the codes of 'act1.quantize' (pass 127|are read by 'cast' \(Cast\))"),
    ],
)
def test_what_has_no_such_codes_is_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(HardbitError, match=message):
        SignedActivations().apply(model)


def test_int8_codes_are_left_as_they_are() -> None:
    model = plain_cnn(4)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("act") and numpy_helper.to_array(tensor).dtype == np.uint8:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int8), tensor.name))
    assert SignedActivations().apply(model).graph.node == model.graph.node
