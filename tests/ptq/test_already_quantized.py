"""Quantized files are taken as they are: the canonical graph gives the logits of the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantFormat, QuantType

from canonical_examples import plain_cnn as canonical_cnn
from executed_precision import executed_precision_of
from float_networks import FloatBuilder, plain_network, residual_network, token_network
from hardbit.graph.gradient import build_attack_graph
from hardbit.graph.onnx_graph import OnnxGraph, bits_of
from hardbit.ptq import canonical_from_quantized, quantize_network
from hardbit.targets import float_nodes, integer_nodes, lower
from hardbit_deploy.errors import HardbitError
from lowering_examples import constants, copy_of, images_for, run, with_constants
from quantized_files import quantized_by_onnxruntime

UINT8, INT8 = QuantType.QUInt8, QuantType.QInt8


def codes_apart(ours: np.ndarray, theirs: np.ndarray, source: onnx.ModelProto) -> float:
    """The largest difference of logits in steps of the source's last quantizer, or of 1/255 of their range."""
    graph = OnnxGraph(source)
    last = graph.producer("logits")
    while last is not None and last.op_type == "Identity":
        last = graph.producer(last.input[0])
    scale = graph.operand(last, 1) if last is not None and last.op_type == "DequantizeLinear" else None
    step = np.ptp(theirs) / 255 if scale is None else float(scale.item())
    return float(np.abs(ours - theirs).max() / step)


@pytest.mark.parametrize(("build", "symmetric"), [(plain_network, True), (residual_network, False)])
@pytest.mark.parametrize(("activations", "weights"), [(UINT8, INT8), (INT8, INT8), (UINT8, UINT8)])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_files_of_onnxruntime_keep_their_logits(
    build: Callable, form: QuantFormat, activations: QuantType, weights: QuantType, symmetric: bool
) -> None:
    source = quantized_by_onnxruntime(build(), form, activations, weights, ActivationSymmetric=symmetric)
    images = images_for(source)
    canonical = canonical_from_quantized(source)
    theirs = run(source, images, optimised=True)
    assert codes_apart(run(canonical, images), run(source, images), source) <= 1.01
    engine = run(lower(canonical, "onnxruntime"), images, optimised=True)
    assert codes_apart(engine, theirs, source) <= 1.01
    layers = [node for node in build().graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(integer_nodes(canonical)) == len(layers)
    report = executed_precision_of(canonical, images)
    assert (report.status, report.problems) == ("integer", ())


@pytest.mark.parametrize(
    "options",
    [
        {"per_channel": True},
        {"per_channel": True, "AddQDQPairToWeight": True},
        {"DedicatedQDQPair": True},
        {"QDQKeepRemovableActivations": True},
        {"per_channel": True, "ActivationSymmetric": True, "QDQDisableWeightAdjustForInt32Bias": True},
    ],
)
def test_the_options_of_onnxruntime_make_no_difference(options: dict[str, bool]) -> None:
    source = quantized_by_onnxruntime(residual_network(), QuantFormat.QDQ, **options)
    images = images_for(source)
    canonical = canonical_from_quantized(source)
    assert codes_apart(run(canonical, images), run(source, images), source) <= 1.01
    assert len(integer_nodes(canonical)) == 6
    assert executed_precision_of(canonical, images).problems == ()


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_products_on_tokens_are_gemms_on_rows_of_codes(form: QuantFormat) -> None:
    source = quantized_by_onnxruntime(token_network(), form)
    images = images_for(source)
    canonical = canonical_from_quantized(source)
    assert codes_apart(run(canonical, images), run(source, images), source) <= 2.01
    names = {node["name"].removesuffix("_quant") for node in integer_nodes(canonical)}
    assert names >= {"patches", "query", "key", "value", "out"}
    assert executed_precision_of(canonical, images).problems == ()


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_an_attack_graph_is_made_of_them(form: QuantFormat) -> None:
    canonical = canonical_from_quantized(quantized_by_onnxruntime(residual_network(), form, INT8, INT8))
    build_attack_graph(canonical)


def test_weights_with_a_zero_point_keep_their_codes() -> None:
    source = quantized_by_onnxruntime(plain_network(), QuantFormat.QDQ, UINT8, UINT8, WeightSymmetric=False)
    canonical = canonical_from_quantized(source)
    weights = constants(canonical)
    assert weights["conv2.weight.codes"].dtype == np.uint8
    assert np.any(weights["conv2.weight.zero_point"])


def test_an_image_quantized_by_another_scale_is_still_read_as_bytes() -> None:
    b = Pieces(2)
    x = b.node("Flatten", [b.quantize("image", "image", 0.003, 9)], "flatten", axis=1)
    source = b.model(b.node("MatMul", [x, b.weight("fc.w", (768, 10), axis=1)], "fc"))
    images = images_for(source)
    canonical = canonical_from_quantized(source)
    np.testing.assert_allclose(run(canonical, images), run(source, images), atol=1e-5)
    engine = run(lower(canonical, "onnxruntime"), images, optimised=True)
    np.testing.assert_allclose(engine, run(source, images), atol=1e-4)


def test_a_canonical_graph_comes_back_as_it_is() -> None:
    for bits in (8, 4, 2):
        canonical = canonical_cnn(bits)
        images = images_for(canonical)
        again = canonical_from_quantized(canonical)
        np.testing.assert_array_equal(run(again, images), run(canonical, images))
        assert integer_nodes(again) == integer_nodes(canonical)
        assert float_nodes(again) == []


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_widths_are_read_off_codes_and_clips_where_no_metadata_says_them(bits: int) -> None:
    def widths(model: onnx.ModelProto) -> dict[str, int | None]:
        graph = OnnxGraph(model)
        quantizers = [node for node in graph.nodes if node.op_type == "DequantizeLinear" and "bias" not in node.name]
        return {node.name: bits_of(node) for node in quantizers}

    canonical = canonical_cnn(bits)
    bare = copy_of(canonical)
    for node in bare.graph.node:
        del node.metadata_props[:]
    assert widths(canonical_from_quantized(bare)) == widths(canonical)


def test_what_post_training_quantization_made_comes_back_as_it_is() -> None:
    canonical = quantize_network(residual_network(), images_for(residual_network()), bits=5)
    images = images_for(canonical)
    again = canonical_from_quantized(canonical)
    np.testing.assert_array_equal(run(again, images), run(canonical, images))
    assert integer_nodes(again) == integer_nodes(canonical)
    assert {row["name"] for row in float_nodes(again)} == {row["name"] for row in float_nodes(canonical)}


class Pieces(FloatBuilder):
    """Q/DQ pieces as exporters of training frameworks write them."""

    def quantize(self, tensor: str, name: str, scale: float, zero_point: int = 0, kind: type = np.int8) -> str:
        parameters = [self.constant(f"{name}.s", np.float32(scale)), self.constant(f"{name}.z", kind(zero_point))]
        codes = self.node("QuantizeLinear", [tensor, *parameters], f"{name}.q")
        return self.node("DequantizeLinear", [codes, *parameters], f"{name}.dq")

    def weight(self, name: str, shape: tuple[int, ...], axis: int = 0) -> str:
        """float -> QuantizeLinear -> DequantizeLinear, one scale for each index of `axis`."""
        values = self.rng.normal(0, 0.2, shape).astype(np.float32)
        others = tuple(index for index in range(len(shape)) if index != axis)
        scale = (np.abs(values).max(axis=others) / 127).astype(np.float32)
        parameters = [self.constant(f"{name}.s", scale), self.constant(f"{name}.z", np.zeros(len(scale), np.int8))]
        codes = self.node("QuantizeLinear", [self.constant(name, values), *parameters], f"{name}.q", axis=axis)
        return self.node("DequantizeLinear", [codes, *parameters], f"{name}.dq", axis=axis)


def pieces_network(
    cut: Callable[[Pieces, str], str] = lambda b, x: x, *, zero_point: int = -128, bias: str = "float"
) -> onnx.ModelProto:
    """Conv -> `cut` -> quantizer, then a product with turned weights."""
    b = Pieces(2)
    x = b.quantize("image", "image", 1 / 256)
    values = b.rng.normal(0, 0.1, 8).astype(np.float32)
    parameters = [b.weight("conv.w", (8, 3, 3, 3)), b.constant("conv.b", values)]
    if bias == "none":
        parameters.pop()
    x = b.node("Conv", [x, *parameters], "conv", kernel_shape=[3, 3], strides=[2, 2])
    x = b.quantize(cut(b, x), "act", 0.01, zero_point)
    x = b.quantize(b.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[1, 1]), "again", 0.01, zero_point)
    x = b.node("Flatten", [x], "flatten", axis=1)
    turned = b.node("Transpose", [b.weight("fc.w", (10, 288))], "turned", perm=[1, 0])
    x = b.node("Add", [b.node("MatMul", [x, turned], "fc"), b.constant("fc.b", np.ones(10, np.float32))], "fc.add")
    return b.model(x)


def relu(b: Pieces, x: str) -> str:
    return b.node("Relu", [x], "relu")


def hardtanh(b: Pieces, x: str) -> str:
    return b.node("Clip", [x, b.constant("low", np.float32(-0.3)), b.constant("high", np.float32(0.7))], "hardtanh")


@pytest.mark.parametrize("bias", ["float", "none"])
@pytest.mark.parametrize("zero_point", [-128, 0, -20])
@pytest.mark.parametrize("cut", [lambda b, x: x, relu, hardtanh])
def test_pieces_of_other_exporters_become_integer_layers(cut: Callable, zero_point: int, bias: str) -> None:
    source = pieces_network(cut, zero_point=zero_point, bias=bias)
    images = images_for(source)
    canonical = canonical_from_quantized(source)
    np.testing.assert_allclose(run(canonical, images), run(source, images), atol=1e-5)
    report = executed_precision_of(canonical, images)
    assert [row.name for row in report.nodes if row.integer] == ["conv", "fc"]
    assert report.problems == ()
    assert float_nodes(canonical) == []
    assert sum(node.op_type == "QuantizeLinear" for node in canonical.graph.node) == 2  # the repeated one is gone


def test_a_layer_whose_result_is_not_quantized_is_declared_with_the_targets_words() -> None:
    source = pieces_network(lambda b, x: b.node("LeakyRelu", [x], "leaky"))
    canonical = canonical_from_quantized(source)
    reasons = {row["name"]: row["reason"] for row in float_nodes(canonical)}
    assert set(reasons) == {"conv", "leaky"}
    assert "would run in float" in reasons["conv"]
    assert executed_precision_of(canonical, images_for(source)).status == "integer"
    np.testing.assert_allclose(run(canonical, images_for(source)), run(source, images_for(source)), atol=1e-5)


def test_quantized_constants_that_are_no_weights_become_numbers() -> None:
    source = pieces_network(lambda b, x: b.node("Mul", [x, b.weight("gain", (1, 8, 1, 1), 1)], "mul"))
    canonical = canonical_from_quantized(source)
    np.testing.assert_allclose(run(canonical, images_for(source)), run(source, images_for(source)), atol=1e-5)


def dynamic() -> onnx.ModelProto:
    model = plain_network()
    source = next(node for node in model.graph.node if node.name == "flatten")
    made = [f"dynamic.{index}" for index in range(3)]
    place = list(model.graph.node).index(source) + 1
    nodes = [
        helper.make_node("DynamicQuantizeLinear", [source.output[0]], made, name="dynamic"),
        helper.make_node("DequantizeLinear", made, ["numbers"], name="numbers"),
    ]
    model.graph.node[place].input[0] = "numbers"
    for node in reversed(nodes):
        model.graph.node.insert(place, node)
    return model


def weights_by_input_channel() -> onnx.ModelProto:
    b = Pieces(2)
    x = b.quantize("image", "image", 1 / 256)
    x = b.node("Conv", [x, b.weight("conv.w", (8, 3, 3, 3), axis=1)], "conv", kernel_shape=[3, 3])
    x = b.node("Flatten", [b.quantize(x, "act", 0.01)], "flatten", axis=1)
    return b.model(b.gemm(x, "fc", 8 * 14 * 14, 10))


def codes_in_a_sum() -> onnx.ModelProto:
    source = quantized_by_onnxruntime(plain_network(), QuantFormat.QOperator)
    node = next(node for node in source.graph.node if node.op_type == "MaxPool")
    node.op_type = "Softmax"
    del node.attribute[:]
    return source


def sixteen_bits() -> onnx.ModelProto:
    source = pieces_network()
    return with_constants(copy_of(source), {"act.z": np.int16(0)})


@pytest.mark.parametrize(
    ("build", "refusal"),
    [
        (dynamic, "^dynamic: DynamicQuantizeLinear finds its scales while it runs"),
        (weights_by_input_channel, r"^conv: the scale of its weight runs along axis 1"),
        (codes_in_a_sum, "^pool.*: Softmax computes on codes"),
        (sixteen_bits, r"^act\.q: its codes are int16"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_node(build: Callable, refusal: str) -> None:
    with pytest.raises(HardbitError, match=refusal):
        canonical_from_quantized(build())


def test_codes_read_by_another_scale_are_refused() -> None:
    b = Pieces(2)
    scale, other, zero = (
        b.constant(n, v) for n, v in (("s", np.float32(0.1)), ("t", np.float32(0.2)), ("z", np.int8(0)))
    )
    x = b.node("Flatten", [b.node("QuantizeLinear", ["image", scale, zero], "q")], "flatten", axis=1)
    x = b.node("DequantizeLinear", [x, other, zero], "dq")
    with pytest.raises(HardbitError, match=r"^dq: it reads codes by another scale"):
        canonical_from_quantized(b.model(b.gemm(x, "fc", 768, 10)))
