"""ONNX Runtime's operators on codes, each against its rewrite to Q/DQ."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.ptq.operators_on_codes import codes_as_numbers

MICROSOFT = "com.microsoft"
SHAPE = (2, 4, 6, 6)


class Codes:
    """A graph whose input is quantized, ends in one operator on codes, and is dequantized."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: object) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def parameters(self, scale: float, zero_point: int) -> list[str]:
        return [self.constant(np.float32(scale)), self.constant(np.uint8(zero_point))]

    def quantized(self, scale: float, zero_point: int) -> list[str]:
        inputs = ["x", *self.parameters(scale, zero_point)]
        name = f"codes{len(self.nodes)}"
        self.nodes.append(helper.make_node("QuantizeLinear", inputs, [name], name=name))
        return [name, *inputs[1:]]

    def model(
        self, operator: str, inputs: list[str], scale: float, zero: int, domain: str = MICROSOFT, **options: object
    ):
        self.nodes.append(helper.make_node(operator, inputs, ["result"], name="tested", domain=domain, **options))
        read = ["result", *self.parameters(scale, zero)]
        self.nodes.append(helper.make_node("DequantizeLinear", read, ["y"], name="dequantize"))
        graph = helper.make_graph(
            self.nodes,
            "codes",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(SHAPE))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self.initializers,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)], ir_version=10
        )


def of_one(operator: str, scale: float, zero: int, **options: object) -> onnx.ModelProto:
    c = Codes()
    inputs = [*c.quantized(0.03, 120), *c.parameters(scale, zero)]
    return c.model(operator, inputs, scale, zero, **options)


def of_two(operator: str) -> onnx.ModelProto:
    c = Codes()
    inputs = [*c.quantized(0.03, 120), *c.quantized(0.05, 100), *c.parameters(0.07, 90)]
    return c.model(operator, inputs, 0.07, 90)


def with_constant() -> onnx.ModelProto:
    c = Codes()
    constant = [c.constant(c.rng.integers(0, 256, (1, 4, 1, 1)).astype(np.uint8)), *c.parameters(0.01, 77)]
    return c.model("QLinearAdd", [*c.quantized(0.03, 120), *constant, *c.parameters(0.05, 110)], 0.05, 110)


def joined() -> onnx.ModelProto:
    c = Codes()
    first, second = c.quantized(0.03, 120), c.quantized(0.05, 100)
    return c.model("QLinearConcat", [*c.parameters(0.05, 110), *first, *second], 0.05, 110, axis=1)


def convolved() -> onnx.ModelProto:
    c = Codes()
    weights = [
        c.constant(c.rng.integers(-127, 128, (5, 4, 3, 3)).astype(np.int8)),
        c.constant(c.rng.uniform(0.001, 0.01, 5).astype(np.float32)),
        c.constant(np.zeros(5, np.int8)),
    ]
    bias = c.constant(c.rng.integers(-3000, 3000, 5).astype(np.int32))
    inputs = [*c.quantized(0.03, 120), *weights, *c.parameters(0.05, 110), bias]
    return c.model("QLinearConv", inputs, 0.05, 110, domain="", pads=[1, 1, 1, 1])


def multiplied() -> onnx.ModelProto:
    c = Codes()
    weights = [
        c.constant(c.rng.integers(-127, 128, (6, 3)).astype(np.int8)),
        c.constant(c.rng.uniform(0.001, 0.01, 3).astype(np.float32)),
        c.constant(np.zeros(3, np.int8)),
    ]
    return c.model("QLinearMatMul", [*c.quantized(0.03, 120), *weights, *c.parameters(0.02, 128)], 0.02, 128, domain="")


MODELS = {
    "QLinearAdd": lambda: of_two("QLinearAdd"),
    "QLinearAdd with a constant": with_constant,
    "QLinearMul": lambda: of_two("QLinearMul"),
    "QLinearConcat": joined,
    "QLinearConv": convolved,
    "QLinearMatMul": multiplied,
    "QLinearSigmoid": lambda: of_one("QLinearSigmoid", 1 / 255, 0),
    "QLinearLeakyRelu": lambda: of_one("QLinearLeakyRelu", 0.03, 60, alpha=0.1),
    "QLinearGlobalAveragePool": lambda: of_one("QLinearGlobalAveragePool", 0.02, 120, channels_last=0),
    "QLinearAveragePool": lambda: of_one("QLinearAveragePool", 0.03, 120, kernel_shape=[2, 2], strides=[2, 2]),
    "QLinearSoftmax": lambda: of_one("QLinearSoftmax", 1 / 256, 0, axis=-1, opset=13),
}


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


@pytest.mark.parametrize("operator", MODELS)
def test_each_operator_is_at_most_one_code_from_its_rewrite(operator: str) -> None:
    model = MODELS[operator]()
    x = np.random.default_rng(1).normal(0, 1.5, SHAPE).astype(np.float32)
    rewritten = codes_as_numbers(model)
    assert not any(node.op_type.startswith("QLinear") for node in rewritten.graph.node)
    assert [entry.domain for entry in rewritten.opset_import] == [""]
    theirs, ours = run(model, x), run(rewritten, x)
    graph = OnnxGraph(model)
    step = float(graph.operand(graph.nodes[-1], 1).item())
    codes_apart = np.abs(ours - theirs) / step
    assert codes_apart.max() <= 1.01
    assert np.mean(codes_apart > 0.5) < 0.03
    assert np.unique(theirs).size > 6
