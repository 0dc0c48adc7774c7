"""QONNX operators as Q/DQ compute what the published definitions say, node by node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from executed_precision import executed_precision_of
from float_networks import FloatBuilder
from hardbit.graph.gradient import build_attack_graph
from hardbit.graph.onnx_graph import OnnxGraph, attribute, bits_of
from hardbit.ptq import canonical_from_quantized
from hardbit_deploy.errors import HardbitError
from lowering_examples import constants, images_for, run

DOMAIN = "qonnx.custom_op.general"


class QonnxBuilder(FloatBuilder):
    def custom(self, operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        return self.node(operator, inputs, name, domain=DOMAIN, **attributes)

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.float32(value))

    def quant(self, x: str, name: str, scale: object, bits: float, zero: float = 0, **attributes: object) -> str:
        scale_name = self.constant(f"{name}.s", np.asarray(scale, np.float32))
        inputs = [x, scale_name, self.number(f"{name}.z", zero), self.number(f"{name}.b", bits)]
        return self.custom("Quant", inputs, name, **{"signed": 1, "narrow": 0, "rounding_mode": "ROUND"} | attributes)

    def weights(self, name: str, shape: tuple[int, ...], bits: int) -> str:
        values = self.rng.normal(0, 0.3, shape).astype(np.float32)
        peaks = np.abs(values).max(axis=tuple(range(1, len(shape))), keepdims=True)
        scale = peaks / max(2 ** (bits - 1) - 1, 1)
        return self.quant(self.constant(f"{name}.float", values), name, scale, bits, narrow=1)

    def model(self, output: str, input_shape: tuple[int, int, int] = (3, 16, 16)) -> onnx.ModelProto:
        """Not checked: onnx does not know the domain."""
        return helper.make_model(
            helper.make_graph(
                [*self.nodes, helper.make_node("Identity", [output], ["logits"], name="logits")],
                "qonnx",
                [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", *input_shape])],
                [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 10])],
                self.initializers,
            ),
            opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 2)],
            ir_version=10,
        )


def by_definition(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every QONNX operator written out in standard operators, in the order of its definition."""
    graph = OnnxGraph(model)
    for node in list(graph.nodes):
        if node.domain != DOMAIN:
            continue
        place = iter(range(100))

        def step(operator: str, *inputs: str, node: onnx.NodeProto = node, place=place) -> str:
            made = f"{node.name}.by_definition.{next(place)}"
            graph.insert_before(node, helper.make_node(operator, list(inputs), [made], name=made))
            return made

        def number(value: float, node: onnx.NodeProto = node) -> str:
            return graph.add_constant(f"{node.name}.number", np.float32(value))

        x, scale = node.input[:2]
        if node.op_type == "BipolarQuant":
            positive = step("GreaterOrEqual", x, number(0))
            result = step("Mul", step("Where", positive, number(1), number(-1)), scale)
        else:
            zero = node.input[2]
            signed, narrow = attribute(node, "signed", 1), attribute(node, "narrow", 0)
            bits = float(graph.operand(node, 5 if len(node.input) > 5 else 4 if node.op_type == "Trunc" else 3).item())
            low = -(2 ** (bits - 1)) + narrow if signed else 0
            high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
            y = step("Add", step("Div", x, scale), zero)
            if node.op_type == "Quant":
                y = step("Round", step("Min", step("Max", y, number(low)), number(high)))
            else:
                newer = len(node.input) > 5
                out = float(graph.operand(node, 4).item()) / float(graph.operand(node, 1).item())
                divisor = out if newer else 2 ** (float(graph.operand(node, 3).item()) - bits)
                y = step("Div", step("Round", y), number(divisor))
                y = step("Min", step("Max", y, number(low)), number(high))
                y = step("Floor" if attribute(node, "rounding_mode", b"FLOOR") == b"FLOOR" else "Round", y)
                scale = node.input[4] if newer else scale
            result = step("Mul", step("Sub", y, zero), scale)
        graph.insert_before(node, helper.make_node("Identity", [result], node.output[:1], name=node.name))
        graph.remove(node)
    plain = graph.to_model()
    del plain.opset_import[:]
    plain.opset_import.append(helper.make_opsetid("", 18))
    return plain


def network(
    middle: Callable[[QonnxBuilder, str], str], *, weight_bits: int = 4, features: int = 200
) -> onnx.ModelProto:
    """Conv of quantized pixels, a Relu, `middle`, Conv, a quantizer, a Gemm."""
    b = QonnxBuilder(4)
    x = b.quant("image", "pixels", 1 / 128, 8)
    weights = [
        b.weights("conv1.w", (8, 3, 3, 3), weight_bits),
        b.constant("conv1.b", b.rng.normal(0, 0.1, 8).astype("f4")),
    ]
    x = middle(b, b.node("Conv", [x, *weights], "conv1", kernel_shape=[3, 3], strides=[2, 2]))
    x = b.node("Conv", [x, b.weights("conv2.w", (8, 8, 3, 3), weight_bits)], "conv2", kernel_shape=[3, 3])
    x = b.quant(b.node("Relu", [x], "relu2"), "act2", 0.05, 4, signed=0)
    x = b.node("Flatten", [x], "flatten", axis=1)
    bias = b.quant(b.constant("fc.b", b.rng.normal(0, 0.1, 10).astype("f4")), "fc.bias", 0.001, 16)
    return b.model(b.node("Gemm", [x, b.weights("fc.w", (10, features), weight_bits), bias], "fc", transB=1))


def rectified(bits: float, **attributes: object) -> Callable[[QonnxBuilder, str], str]:
    return lambda b, x: b.quant(b.node("Relu", [x], "relu1"), "act1", 0.06, bits, **{"signed": 0} | attributes)


MIDDLES = {
    "unsigned 4 bits": rectified(4),
    "unsigned 3 bits, narrow": rectified(3, narrow=1),
    "unsigned 8 bits": rectified(8),
    "signed 5 bits, narrow": lambda b, x: b.quant(x, "act1", 0.06, 5, narrow=1),
    "a zero point": lambda b, x: b.quant(x, "act1", 0.06, 6, 20, signed=0),
    "one bit": lambda b, x: b.custom("BipolarQuant", [x, b.number("act1.s", 0.5)], "act1"),
}


@pytest.mark.parametrize("middle", MIDDLES)
def test_networks_compute_what_the_definition_says(middle: str) -> None:
    source = network(MIDDLES[middle])
    images = images_for(source)
    canonical = canonical_from_quantized(source)
    np.testing.assert_allclose(run(canonical, images), run(by_definition(source), images), atol=2e-3)
    assert executed_precision_of(canonical, images).problems == ()
    build_attack_graph(canonical)


@pytest.mark.parametrize("weight_bits", [2, 3, 8])
def test_weights_keep_their_width_and_run_in_integers(weight_bits: int) -> None:
    source = network(MIDDLES["unsigned 4 bits"], weight_bits=weight_bits)
    canonical = canonical_from_quantized(source)
    widths = {node.name: bits_of(node) for node in canonical.graph.node if node.name.endswith("weight.dequantize")}
    assert widths == {f"{name}.weight.dequantize": weight_bits for name in ("conv1", "conv2", "fc")}
    report = executed_precision_of(canonical, images_for(source))
    assert (report.status, [row.name for row in report.nodes]) == ("integer", ["conv1", "conv2", "fc"])


def test_binary_weights_are_minus_one_and_one() -> None:
    b = QonnxBuilder(4)
    x = b.node("Flatten", [b.quant("image", "pixels", 1 / 128, 8)], "flatten", axis=1)
    values = b.constant("w.float", b.rng.normal(0, 1, (10, 768)).astype(np.float32))
    scale = b.constant("w.s", b.rng.uniform(0.01, 0.1, (10, 1)).astype(np.float32))
    source = b.model(b.node("Gemm", [x, b.custom("BipolarQuant", [values, scale], "w")], "fc", transB=1))
    canonical = canonical_from_quantized(source)
    assert set(np.unique(constants(canonical)["fc.weight.codes"])) == {-1, 1}
    images = images_for(source)
    np.testing.assert_allclose(run(canonical, images), run(by_definition(source), images), atol=1e-4)


@pytest.mark.parametrize("mode", ["FLOOR", "ROUND"])
@pytest.mark.parametrize("newer", [True, False])
def test_truncated_averages(mode: str, newer: bool) -> None:
    def middle(b: QonnxBuilder, x: str) -> str:
        x = b.quant(b.node("Relu", [x], "relu1"), "act1", 0.0625, 4, signed=0)
        pooled = b.node("AveragePool", [x], "pool", kernel_shape=[2, 2], strides=[1, 1])
        total = b.node("Mul", [pooled, b.number("count", 4)], "total")
        inputs = [total, b.number("t.s", 0.0625), b.number("t.z", 0), b.number("t.in", 6)]
        inputs += [b.number("t.out", 0.25), b.number("t.bits", 4)] if newer else [b.number("t.bits", 4)]
        return b.custom("Trunc", inputs, "trunc", rounding_mode=mode, **({"signed": 0} if newer else {}))

    source = network(middle, features=128)
    literal = by_definition(source)
    if not newer:  # the older operator has no sign of its own; its definition does not cut
        literal = by_definition(with_attribute(source, "trunc", "signed", 0))
    images = images_for(source)
    canonical = canonical_from_quantized(source)
    np.testing.assert_allclose(run(canonical, images), run(literal, images), atol=2e-3)
    build_attack_graph(canonical)


def with_attribute(model: onnx.ModelProto, name: str, key: str, value: int) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    next(node for node in copy.graph.node if node.name == name).attribute.append(helper.make_attribute(key, value))
    return copy


def scale_at_run_time(b: QonnxBuilder, x: str) -> str:
    size = b.node("ReduceMax", [x], "largest", keepdims=0)
    return b.custom("Quant", [x, size, b.number("z", 0), b.number("b", 4)], "act1")


@pytest.mark.parametrize(
    ("middle", "refusal"),
    [
        (lambda b, x: b.quant(x, "act1", 0.06, 10), r"^act1: activations of 10 bits"),
        (lambda b, x: b.quant(x, "act1", np.full((1, 8, 1, 1), 0.1), 4), r"^act1: an activation has a scale for each"),
        (lambda b, x: b.quant(x, "act1", 0.1, 4, rounding_mode="CEIL"), r"^act1: activations are rounded by CEIL"),
        (lambda b, x: b.quant(x, "act1", 0.1, 4, 0.5), r"^act1: the zero point 0\.5 is no code"),
        (scale_at_run_time, r"^act1: its scale is computed at run time"),
        (lambda b, x: b.custom("FloatQuant", [x], "act1"), r"^act1: the QONNX operator FloatQuant has no Q/DQ form"),
    ],
)
def test_what_has_no_form_is_refused_by_node(middle: Callable, refusal: str) -> None:
    with pytest.raises(HardbitError, match=refusal):
        canonical_from_quantized(network(middle))
