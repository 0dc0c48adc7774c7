"""Small Q/DQ graphs, one idiom each, and what TensorRT makes of them (measured with TensorRT for RTX 1.7.1).

`INTEGER` builds with int8 factors, as wanted. `FLOAT` builds without a word, and at least one layer multiplies in float
or in another type than int8. `OTHER_NUMBERS` builds in int8 with other codes than the graph has, and a warning.
`UNSEEN` does so without a word: only who lowers a graph can see it. `REFUSED` is refused by the parser, which names the
node; `BUILDER_FAILS` gives no plan.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HEAVY = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "QLinearConv"])
FLOAT32, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8


class QdqBuilder:
    """Writes a graph node by node; every value is named after the node that gives it."""

    def __init__(self, *shape: int | str, kind: int = FLOAT32, opset: int = 18, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", kind, shape)]

    def add_input(self, name: str, *shape: int) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, FLOAT32, shape))
        return name

    def constant(self, values: object, kind: type = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def packed(self, values: NDArray[np.generic], kind: int) -> str:
        """A constant of a type that numpy has not."""
        name = f"constant{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, kind, values.shape, values.flatten().tolist()))
        return name

    def node(self, op: str, *inputs: str, name: str = "", **attributes: object) -> str:
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def qdq(self, x: str, scale: object = 0.0625, zero: int = 0, kind: type = np.int8, **attributes: object) -> str:
        steps = self.constant(scale), self.constant(np.full(np.shape(scale), zero), kind)
        codes = self.node("QuantizeLinear", x, *steps, **attributes)
        return self.node("DequantizeLinear", codes, *steps, **attributes)

    def weights(self, *shape: int, axis: int = 0, scales: object = None) -> str:
        codes = self.random.integers(-127, 128, shape)
        steps = np.full(shape[axis], 2.0**-7) if scales is None else scales
        zeros = np.zeros(np.shape(steps))
        attributes = {} if np.shape(steps) == () else {"axis": axis}
        constants = self.constant(codes, np.int8), self.constant(steps), self.constant(zeros, np.int8)
        return self.node("DequantizeLinear", *constants, **attributes)

    def conv(self, x: str, inputs: int, outputs: int, name: str, weights: str = "", **attributes: object) -> str:
        groups = attributes.get("group", 1)
        assert isinstance(groups, int)
        weights = weights or self.weights(outputs, inputs // groups, 3, 3)
        bias = self.constant(self.random.normal(size=outputs))
        y = self.node("Conv", x, weights, bias, name=name, kernel_shape=[3, 3], pads=[1, 1, 1, 1], **attributes)
        return self.node("Relu", y)

    def model(self, output: str, kind: int = FLOAT32) -> onnx.ModelProto:
        result = helper.make_tensor_value_info(output, kind, None)
        graph = helper.make_graph(self.nodes, "pattern", self.inputs, [result], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


def heavy_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that multiply matrices or convolve."""
    return [node for node in model.graph.node if node.op_type in HEAVY]


def as_network(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose input and output have the names of a network's."""
    names = {"x": "image", model.graph.output[0].name: "logits"}
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for value in (*renamed.graph.input, *renamed.graph.output):
        value.name = names.get(value.name, value.name)
    for node in renamed.graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    return renamed


def _images(channels: int = 16, **options: int) -> QdqBuilder:
    return QdqBuilder(1, channels, 16, 16, **options)


def int8_convolutions() -> onnx.ModelProto:
    b = _images()
    y = b.conv(b.qdq("x"), 16, 32, "conv1")
    return b.model(b.conv(b.qdq(y), 32, 32, "conv2"))


def any_batch() -> onnx.ModelProto:
    b = QdqBuilder("batch", 16, 16, 16)
    return b.model(b.conv(b.qdq("x"), 16, 32, "conv1"))


def any_size() -> onnx.ModelProto:
    b = QdqBuilder("batch", 16, "height", 16)
    return b.model(b.conv(b.qdq("x"), 16, 32, "conv1"))


def int8_input() -> onnx.ModelProto:
    b = _images(kind=INT8)
    x = b.node("DequantizeLinear", "x", b.constant(2.0**-8), b.constant(0, np.int8))
    return b.model(b.conv(x, 16, 32, "conv1"))


def float_clip_for_four_bits() -> onnx.ModelProto:
    b = _images()
    x = b.node("Clip", "x", b.constant(-3.5), b.constant(3.5))
    return b.model(b.conv(b.qdq(x, 0.5), 16, 32, "conv1"))


def skip_branch() -> onnx.ModelProto:
    b = _images(32)
    x = b.qdq("x")
    y = b.node("Conv", b.qdq(b.conv(x, 32, 32, "conv1")), b.weights(32, 32, 1, 1), name="conv2", kernel_shape=[1, 1])
    total = b.node("Relu", b.node("Add", y, b.qdq(x, 0.125)))
    return b.model(b.conv(b.qdq(total), 32, 32, "conv3"))


def depthwise_and_classifier() -> onnx.ModelProto:
    b = _images(32)
    y = b.qdq(b.conv(b.qdq("x"), 32, 32, "depthwise", group=32))
    y = b.node("Flatten", b.node("GlobalAveragePool", y), axis=1)
    bias = b.constant(np.zeros(10))
    return b.model(b.node("Gemm", b.qdq(y), b.weights(10, 32), bias, name="fc", transB=1))


def like_concat() -> onnx.ModelProto:
    return _concat(0.0625)


def attention() -> onnx.ModelProto:
    return _attention(True)


def _concat(other_scale: float, requantize: bool = False) -> onnx.ModelProto:
    b = _images(32)
    x = b.qdq("x")
    left, right = b.qdq(b.conv(x, 32, 16, "left")), b.qdq(b.conv(x, 32, 16, "right"), other_scale)
    y = b.node("Concat", left, right, axis=1)
    return b.model(b.conv(b.qdq(y) if requantize else y, 32, 32, "conv"))


def unlike_concat_requantized() -> onnx.ModelProto:
    return _concat(0.03125, requantize=True)


def _attention(quantized: bool) -> onnx.ModelProto:
    """One head over 16 tokens of 64 numbers."""
    b = QdqBuilder(1, 16, 64)
    x = b.qdq("x")
    parts = [b.node("MatMul", x, b.weights(64, 64, axis=1), name=name) for name in ("query", "key", "value")]
    query, key, value = [b.qdq(part, 0.5) for part in parts] if quantized else parts
    scores = b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 1]), name="scores")
    shares = b.node("Softmax", b.node("Mul", scores, b.constant(0.125)), axis=-1)
    mixed = b.node("MatMul", b.qdq(shares, 2.0**-7) if quantized else shares, value, name="mixed")
    return b.model(b.node("MatMul", b.qdq(mixed), b.weights(64, 64, axis=1), name="projection"))


def float_input_of_a_convolution() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv("x", 16, 32, "conv1"))


def float_weights() -> onnx.ModelProto:
    b = _images()
    weights = b.constant(b.random.normal(size=(32, 16, 3, 3)))
    return b.model(b.conv(b.qdq("x"), 16, 32, "conv1", weights))


def scale_of_shape_one() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv(b.qdq("x", [0.0625]), 16, 32, "conv1"))


def activation_scales_per_channel() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv(b.qdq("x", np.full(16, 0.0625), axis=1), 16, 32, "conv1"))


def unlike_concat() -> onnx.ModelProto:
    return _concat(0.03125)


def weight_scales_along_the_inputs() -> onnx.ModelProto:
    b = QdqBuilder(4, 64)
    return b.model(b.node("MatMul", b.qdq("x"), b.weights(64, 32, axis=0), name="fc"))


def convolution_scales_along_the_inputs() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv(b.qdq("x"), 16, 32, "conv1", b.weights(32, 16, 3, 3, axis=1)))


def _transposed(axis: int, scales: object = None) -> onnx.ModelProto:
    b = QdqBuilder(1, 32, 8, 8)
    weights = b.weights(32, 16, 2, 2, axis=axis, scales=scales)
    return b.model(b.node("ConvTranspose", b.qdq("x"), weights, name="up", strides=[2, 2], kernel_shape=[2, 2]))


def transposed_convolution() -> onnx.ModelProto:
    return _transposed(1)


def transposed_convolution_on_the_other_axis() -> onnx.ModelProto:
    return _transposed(0)


def transposed_convolution_of_one_scale() -> onnx.ModelProto:
    return _transposed(1, scales=2.0**-7)


def resized() -> onnx.ModelProto:
    b = _images()
    scales = b.constant([1, 1, 2, 2])
    rule = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return b.model(b.conv(b.node("Resize", b.qdq("x"), "", scales, **rule), 16, 32, "conv1"))


def averaged() -> onnx.ModelProto:
    b = _images()
    y = b.node("AveragePool", b.qdq("x"), kernel_shape=[2, 2], strides=[2, 2])
    return b.model(b.conv(y, 16, 32, "conv1"))


def float_attention() -> onnx.ModelProto:
    return _attention(False)


def _four_bit_weights(block: int | None) -> onnx.ModelProto:
    b = QdqBuilder(4, 64, opset=21)
    codes = b.packed(b.random.integers(-8, 8, (64, 32)), TensorProto.INT4)
    shape, how = ((64 // block, 32), {"axis": 0, "block_size": block}) if block else ((32,), {"axis": 1})
    weights = b.node("DequantizeLinear", codes, b.constant(np.full(shape, 0.0625)), **how)
    return b.model(b.node("MatMul", "x", weights, name="fc"))


def four_bit_weights_in_blocks() -> onnx.ModelProto:
    return _four_bit_weights(32)


def four_bit_weights_per_channel() -> onnx.ModelProto:
    return _four_bit_weights(None)


def four_bit_weights_quantized_in_the_graph() -> onnx.ModelProto:
    b = QdqBuilder(4, 64, opset=21)
    scales, blocks = b.constant(np.full((2, 32), 0.0625)), {"axis": 0, "block_size": 32}
    weights = b.constant(b.random.normal(size=(64, 32)))
    codes = b.node("QuantizeLinear", weights, scales, output_dtype=TensorProto.INT4, **blocks)
    return b.model(b.node("MatMul", "x", b.node("DequantizeLinear", codes, scales, **blocks), name="fc"))


def eight_bit_floats() -> onnx.ModelProto:
    b = QdqBuilder(16, 64, opset=19)
    scale, zero = b.constant(0.0625), b.packed(np.zeros((), np.float32), TensorProto.FLOAT8E4M3FN)
    x = b.node("DequantizeLinear", b.node("QuantizeLinear", "x", scale, zero), scale, zero)
    codes = b.packed(b.random.normal(size=(64, 32)).astype(np.float32), TensorProto.FLOAT8E4M3FN)
    return b.model(b.node("MatMul", x, b.node("DequantizeLinear", codes, scale, zero), name="fc"))


def unsigned_eight_bits() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv(b.qdq(b.node("Relu", "x"), kind=np.uint8), 16, 32, "conv1"))


def no_zero_point() -> onnx.ModelProto:
    """By the standard of ONNX these codes are uint8."""
    b = _images()
    scale = b.constant(0.0625)
    x = b.node("DequantizeLinear", b.node("QuantizeLinear", "x", scale), scale)
    return b.model(b.conv(x, 16, 32, "conv1"))


def infinite_scale() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv(b.qdq("x", np.inf), 16, 32, "conv1"))


def subnormal_scale() -> onnx.ModelProto:
    b = _images()
    scales = np.where(np.arange(32) == 3, 1e-41, 2.0**-7)
    return b.model(b.conv(b.qdq("x"), 16, 32, "conv1", b.weights(32, 16, 3, 3, scales=scales)))


def zero_scale() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv(b.qdq("x", 0.0), 16, 32, "conv1"))


def zero_point_128() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv(b.qdq("x", zero=128, kind=np.uint8), 16, 32, "conv1"))


def zero_point_minus_128() -> onnx.ModelProto:
    b = _images()
    return b.model(b.conv(b.qdq("x", zero=-128), 16, 32, "conv1"))


def byte_input() -> onnx.ModelProto:
    b = _images(kind=UINT8)
    x = b.node("DequantizeLinear", "x", b.constant(2.0**-8), b.constant(0, np.uint8))
    return b.model(b.conv(x, 16, 32, "conv1"))


def integer_bias() -> onnx.ModelProto:
    b = _images()
    codes = b.constant(b.random.integers(-999, 999, 32), np.int32), b.constant(np.full(32, 2.0**-11))
    bias = b.node("DequantizeLinear", *codes, b.constant(np.zeros(32), np.int32), axis=0)
    return b.model(b.node("Conv", b.qdq("x"), b.weights(32, 16, 3, 3), bias, name="conv1", pads=[1, 1, 1, 1]))


def integer_operator() -> onnx.ModelProto:
    b = _images(kind=INT8)
    weights = b.constant(b.random.integers(-127, 128, (32, 16, 3, 3)), np.int8)
    return b.model(b.node("ConvInteger", "x", weights, name="conv1", pads=[1, 1, 1, 1]), TensorProto.INT32)


def operator_of_codes() -> onnx.ModelProto:
    b = _images(kind=INT8)
    scale, zero = b.constant(0.0625), b.constant(0, np.int8)
    weights = b.constant(b.random.integers(-127, 128, (32, 16, 3, 3)), np.int8)
    return b.model(b.node("QLinearConv", "x", scale, zero, weights, scale, zero, scale, zero, name="conv1"), INT8)


def sixteen_bits() -> onnx.ModelProto:
    b = _images(opset=21)
    return b.model(b.conv(b.qdq("x", kind=np.int16), 16, 32, "conv1"))


def four_bit_convolution() -> onnx.ModelProto:
    b = _images(opset=21)
    codes = b.packed(b.random.integers(-8, 8, (32, 16, 3, 3)), TensorProto.INT4)
    weights = b.node("DequantizeLinear", codes, b.constant(np.full(32, 0.0625)), axis=0)
    return b.model(b.conv(b.qdq("x"), 16, 32, "conv1", weights))


def scale_at_run_time() -> onnx.ModelProto:
    b = _images()
    largest = b.node("ReduceMax", b.node("Abs", "x"), keepdims=0)
    steps = b.node("Mul", largest, b.constant(1 / 127)), b.constant(0, np.int8)
    x = b.node("DequantizeLinear", b.node("QuantizeLinear", "x", *steps), *steps)
    return b.model(b.conv(x, 16, 32, "conv1"))


Pattern = Callable[[], onnx.ModelProto]

INTEGER: tuple[Pattern, ...] = (
    int8_convolutions,
    any_batch,
    int8_input,
    float_clip_for_four_bits,
    skip_branch,
    depthwise_and_classifier,
    like_concat,
    unlike_concat_requantized,
    attention,
)
# pattern -> the layers that do not multiply in int8
FLOAT: dict[Pattern, tuple[str, ...]] = {
    float_input_of_a_convolution: ("conv1",),
    float_weights: ("conv1",),
    scale_of_shape_one: ("conv1",),
    activation_scales_per_channel: ("conv1",),
    unlike_concat: ("conv",),
    weight_scales_along_the_inputs: ("fc",),
    convolution_scales_along_the_inputs: ("conv1",),
    transposed_convolution: ("up",),
    transposed_convolution_on_the_other_axis: ("up",),
    transposed_convolution_of_one_scale: ("up",),
    resized: ("conv1",),
    averaged: ("conv1",),
    float_attention: ("scores", "mixed"),
    four_bit_weights_in_blocks: ("fc",),
    four_bit_weights_per_channel: ("fc",),
    four_bit_weights_quantized_in_the_graph: ("fc",),
    eight_bit_floats: ("fc",),
}
OTHER_NUMBERS: tuple[Pattern, ...] = (unsigned_eight_bits,)
# pattern -> what `check_canonical` says
UNSEEN: dict[Pattern, str] = {
    no_zero_point: "the zero point is not a constant of its own",
    infinite_scale: "the scale inf is not a positive, finite, normal number",
    subnormal_scale: "the scale 9.99967e-42 is not a positive, finite, normal number",
}
# pattern -> what the error names
REFUSED: dict[Pattern, str] = {
    zero_scale: "QuantizeLinear_0",
    zero_point_128: "QuantizeLinear_0",
    zero_point_minus_128: "QuantizeLinear_0",
    byte_input: "DequantizeLinear_0",
    integer_bias: "DequantizeLinear_0",
    integer_operator: "conv1",
    operator_of_codes: "conv1",
    sixteen_bits: "engine graph",
    any_size: "x",
}
BUILDER_FAILS: dict[Pattern, str] = {
    four_bit_convolution: "gives no plan",
    scale_at_run_time: "its process died (SIGSEGV)",
}
