"""What is not canonical is refused, and the refusal names the node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper

from canonical_examples import plain_cnn, residual_net
from graph_strategies import small_graphs
from hardbit.graph.canonical_form import check_canonical
from hardbit.graph.onnx_graph import mark_float
from hardbit_deploy.errors import HardbitError
from lowering_examples import WIDTHS, constants, with_constants


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("example", [plain_cnn, residual_net])
def test_the_examples_are_canonical(example, bits: int) -> None:
    check_canonical(example(bits))


@settings(max_examples=30, deadline=None)
@given(small_graphs())
def test_random_graphs_are_canonical(model: onnx.ModelProto) -> None:
    check_canonical(model)


@pytest.mark.parametrize("scale", [0.0, -0.25, np.inf, np.nan, 1e-40])
@pytest.mark.parametrize(("name", "node"), [("act1.scale", "act1.quantize"), ("conv2.weight.scale", "conv2.weight")])
def test_a_scale_that_is_not_positive_finite_and_normal_is_refused(name: str, node: str, scale: float) -> None:
    model = plain_cnn(4)
    values = constants(model)[name].copy()
    values.flat[-1] = scale
    with pytest.raises(HardbitError, match=rf"^{node}.*: the scale .* is not a positive, finite, normal number"):
        check_canonical(with_constants(model, {name: values}))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 17


def unknown_operator(model: onnx.ModelProto) -> None:
    node(model, "relu1").op_type = "LeakyRelu"


def foreign_domain(model: onnx.ModelProto) -> None:
    node(model, "relu1").domain = "com.example"


def no_zero_point(model: onnx.ModelProto) -> None:
    del node(model, "act1.quantize").input[2]


def no_weight_zero_point(model: onnx.ModelProto) -> None:
    del node(model, "fc2.weight.dequantize").input[2]


def wrong_axis(model: onnx.ModelProto) -> None:
    node(model, "conv2.weight.dequantize").attribute[0].i = 1


def another_scale(model: onnx.ModelProto) -> None:
    node(model, "act1.dequantize").input[1] = "input.scale"


def another_type(model: onnx.ModelProto) -> None:
    node(model, "act1.dequantize").input[2] = "input.zero_point"


def scale_at_run_time(model: onnx.ModelProto) -> None:
    node(model, "act1.quantize").input[1] = "conv1.out"


def two_nodes_of_one_name(model: onnx.ModelProto) -> None:
    node(model, "relu2").name = "relu1"


def another_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "scores"
    node(model, "logits").output[0] = "scores"


def bytes_as_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def too_many_bits(model: onnx.ModelProto) -> None:
    node(model, "conv2.weight.dequantize").metadata_props[0].value = "3"


def too_many_activation_bits(model: onnx.ModelProto) -> None:
    node(model, "act1.dequantize").metadata_props[0].value = "3"


def transposed_gemm(model: onnx.ModelProto) -> None:
    node(model, "fc2").attribute[0].i = 0


def scaled_gemm(model: onnx.ModelProto) -> None:
    node(model, "fc2").attribute.append(helper.make_attribute("alpha", 0.5))


def codes_through_a_relu(model: onnx.ModelProto) -> None:
    index = next(i for i, n in enumerate(model.graph.node) if n.name == "act1.dequantize")
    model.graph.node.insert(index, helper.make_node("Relu", ["act1.clipped"], ["act1.again"], name="again"))
    node(model, "act1.dequantize").input[0] = "act1.again"


def silent_softmax(model: onnx.ModelProto) -> None:
    node(model, "relu1").op_type = "Softmax"


def silent_float_clip(model: onnx.ModelProto) -> None:
    node(model, "relu1").op_type = "Clip"


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (silent_softmax, "^relu1: Softmax is computed in float, and nothing says why; declare it"),
        (silent_float_clip, "^relu1: a Clip of float numbers keeps the layer before it in float"),
        (old_opset, "^graph: opset 17 is too old"),
        (unknown_operator, "^relu1: operator LeakyRelu is not known; known: Add, "),
        (foreign_domain, "^relu1: operator com.example.Relu is not known"),
        (no_zero_point, "^act1.quantize: the zero point is not a constant of its own"),
        (no_weight_zero_point, "^fc2.weight.dequantize: the zero point is not a constant of its own"),
        (wrong_axis, "^conv2.weight.dequantize: the scale runs along axis 1"),
        (another_scale, "^act1.dequantize: its scale is not that of 'act1.quantize'"),
        (another_type, "^act1.dequantize: its zero point is not that of 'act1.quantize'"),
        (scale_at_run_time, "^act1.quantize: the scale is computed at run time"),
        (two_nodes_of_one_name, "^relu1: a node needs a name of its own"),
        (another_output, "^graph: the outputs are: scores; a canonical graph has one output, 'logits'"),
        (bytes_as_input, "^image: the input is not float32"),
        (too_many_bits, "^conv2.weight.dequantize: codes from -7 to 7 do not fit the 3 bits declared"),
        (too_many_activation_bits, "^act1.dequantize: codes from 0 to 15 do not fit the 3 bits declared"),
        (transposed_gemm, "^fc2: Gemm with transB=0"),
        (scaled_gemm, "^fc2: Gemm with alpha=0.5"),
        (codes_through_a_relu, "^act1.clip: the clipped codes are not dequantized next"),
    ],
)
def test_a_spoilt_graph_is_refused_by_node(spoil: Callable[[onnx.ModelProto], None], refusal: str) -> None:
    model = plain_cnn(4)
    spoil(model)
    with pytest.raises(HardbitError, match=refusal):
        check_canonical(model)


@pytest.mark.parametrize("spoil", [silent_softmax, silent_float_clip])
def test_what_is_declared_float_is_canonical(spoil: Callable[[onnx.ModelProto], None]) -> None:
    model = plain_cnn(4)
    spoil(model)
    mark_float(node(model, "relu1"), "to see whether it may be")
    check_canonical(model)


def test_any_standard_operator_is_allowed_that_declares_itself_float() -> None:
    model = plain_cnn(4)
    unknown_operator(model)
    mark_float(node(model, "relu1"), "to see whether it may be")
    check_canonical(model)
    node(model, "relu1").domain = "com.example"
    with pytest.raises(HardbitError, match=r"^relu1: operator com\.example\.LeakyRelu is not known"):
        check_canonical(model)


def test_a_gemm_that_is_float_may_have_any_form() -> None:
    model = plain_cnn(4)
    scaled_gemm(model)
    mark_float(node(model, "fc2"), "to see whether it may be")
    check_canonical(model)


def unsigned_weights(zero_points: object) -> dict[str, object]:
    codes = np.random.default_rng(0).integers(0, 256, (12, 8, 3, 3)).astype(np.uint8)
    return {"conv2.weight.codes": codes, "conv2.weight.zero_point": np.asarray(zero_points, np.uint8)}


def test_imported_weights_may_be_uint8_with_one_zero_point() -> None:
    check_canonical(with_constants(plain_cnn(4), unsigned_weights([117] * 12)))
    with pytest.raises(HardbitError, match=r"^conv2\.weight\.dequantize: each channel has a zero point of its own"):
        check_canonical(with_constants(plain_cnn(4), unsigned_weights([*[117] * 11, 118])))


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        ({"conv2.weight.zero_point": np.ones(12, np.int8)}, "^conv2.weight.dequantize: the zero point of a parameter"),
        (
            {"conv2.weight.scale": np.ones(5, np.float32), "conv2.weight.zero_point": np.zeros(5, np.int8)},
            "5 scales for",
        ),
        ({"conv2.weight.codes": np.ones((12, 8, 3, 3), np.uint8)}, "are uint8; store them as int8"),
        ({"fc1.bias.codes": np.ones(16, np.int8)}, "are int8; store them as int32"),
        ({"act1.scale": np.ones(8, np.float32)}, "^act1.quantize: an activation has one scale per channel"),
        ({"act1.scale": np.float64(1)}, "^act1.quantize: the scale is float64"),
    ],
)
def test_spoilt_constants_are_refused_by_node(values: dict, refusal: str) -> None:
    with pytest.raises(HardbitError, match=refusal):
        check_canonical(with_constants(plain_cnn(4), values))


def test_weights_quantized_at_run_time_are_refused() -> None:
    model = plain_cnn(4)
    dequantize = node(model, "conv2.weight.dequantize")
    quantize = helper.make_node(
        "QuantizeLinear", ["w.float", *dequantize.input[1:]], ["w.codes"], name="w.quantize", axis=0
    )
    index = next(i for i, n in enumerate(model.graph.node) if n.name == "conv2.weight.dequantize")
    model.graph.node.insert(index, quantize)
    node(model, "conv2.weight.dequantize").input[0] = "w.codes"
    with pytest.raises(HardbitError, match=r"^w\.quantize: a constant is quantized at run time"):
        check_canonical(with_constants(model, {"w.float": np.ones((12, 8, 3, 3), np.float32)}))
