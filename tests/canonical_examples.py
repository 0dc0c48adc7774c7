"""Canonical quantized graphs written by hand: the specification that exporter, passes and gradient agree on.

Weights are random, scales are exact (see `short_significand`), so every evaluator of these graphs, float or integer,
must give the same bits.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 10
INPUT_SCALE = 1 / 256


def short_significand(values: NDArray[np.float64], bits: int = 5) -> NDArray[np.float32]:
    """Round to the nearest float32 whose significand has `bits` bits: products with small integers are exact."""
    significand, exponent = np.frexp(values)
    return np.ldexp(np.round(significand * 2**bits) / 2**bits, exponent).astype(np.float32)


class CanonicalBuilder:
    """Collects the nodes of one canonical graph, in the form that `hardbit.graph.export` writes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: object) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op_type: str, inputs: list[str], output: str, name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def quantize(self, tensor: str, name: str, scale: float, bits: int, *, signed: bool) -> str:
        """Q -> (integer Clip below 8 bits) -> DQ, the bit width in the metadata of both ends."""
        dtype = np.int8 if signed else np.uint8
        scale_name = self.constant(f"{name}.scale", np.float32(scale))
        zero_point = self.constant(f"{name}.zero_point", dtype(0))
        output = self.node("QuantizeLinear", [tensor, scale_name, zero_point], f"{name}.codes", f"{name}.quantize")
        self.mark_bits(bits)
        if bits < 8:
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            bounds = [self.constant(f"{name}.low", dtype(low)), self.constant(f"{name}.high", dtype(high))]
            output = self.node("Clip", [output, *bounds], f"{name}.clipped", f"{name}.clip")
        output = self.node("DequantizeLinear", [output, scale_name, zero_point], name, f"{name}.dequantize")
        self.mark_bits(bits)
        return output

    def parameters(
        self, name: str, codes: NDArray[np.integer], scale: NDArray[np.float32], input_scale: float
    ) -> list[str]:
        """Weight codes and int32 bias codes with their per-channel DequantizeLinear; returns the two float names."""
        channels = len(scale)
        self.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}.weight.codes", codes.astype(np.int8)),
                self.constant(f"{name}.weight.scale", scale),
                self.constant(f"{name}.weight.zero_point", np.zeros(channels, np.int8)),
            ],
            f"{name}.weight",
            f"{name}.weight.dequantize",
            axis=0,
        )
        bits = int(np.ceil(np.log2(np.abs(codes).max() + 1))) + 1
        self.mark_bits(bits)
        bias = self.rng.integers(-200, 200, channels).astype(np.int32)
        self.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}.bias.codes", bias),
                self.constant(f"{name}.bias.scale", (scale * np.float32(input_scale)).astype(np.float32)),
                self.constant(f"{name}.bias.zero_point", np.zeros(channels, np.int32)),
            ],
            f"{name}.bias",
            f"{name}.bias.dequantize",
            axis=0,
        )
        self.mark_bits(32)
        return [f"{name}.weight", f"{name}.bias"]

    def mark_bits(self, bits: int) -> None:
        entry = self.nodes[-1].metadata_props.add()
        entry.key, entry.value = "hardbit.bits", str(bits)

    def conv(
        self,
        tensor: str,
        name: str,
        shape: tuple[int, int, int, int],
        input_scale: float,
        bits: int,
        **attributes: object,
    ) -> str:
        """Conv with random weight codes of shape (out, in, kernel, kernel)."""
        limit = 2 ** (bits - 1) - 1
        codes = self.rng.integers(-limit, limit + 1, shape)
        fan_in = float(np.prod(shape[1:]))
        scale = short_significand(self.rng.uniform(0.5, 1, shape[0]) * 4 / limit / np.sqrt(fan_in))
        parameters = self.parameters(name, codes, scale, input_scale)
        return self.node("Conv", [tensor, *parameters], f"{name}.out", name, kernel_shape=list(shape[2:]), **attributes)

    def gemm(self, tensor: str, name: str, shape: tuple[int, int], input_scale: float, bits: int) -> str:
        limit = 2 ** (bits - 1) - 1
        codes = self.rng.integers(-limit, limit + 1, shape)
        centred = codes - np.round(codes.mean(axis=1, keepdims=True)).astype(codes.dtype)  # no class always wins
        codes = np.clip(centred, -limit, limit)
        scale = short_significand(self.rng.uniform(0.5, 1, shape[0]) * 4 / limit / np.sqrt(shape[1]))
        return self.node(
            "Gemm", [tensor, *self.parameters(name, codes, scale, input_scale)], f"{name}.out", name, transB=1
        )

    def model(self, output: str, input_shape: tuple[int, int, int], classes: int) -> onnx.ModelProto:
        self.node("Identity", [output], "logits", "logits")
        graph = helper.make_graph(
            self.nodes,
            "canonical",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *input_shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def plain_cnn(bits: int = 4, seed: int = 0) -> onnx.ModelProto:
    """Two convolutions, max pooling and two fully connected layers on (1, 12, 12); 8-bit first and last layer."""
    b = CanonicalBuilder(seed)
    x = b.quantize("image", "input", INPUT_SCALE, 8, signed=True)
    x = b.conv(x, "conv1", (8, 1, 3, 3), INPUT_SCALE, 8, strides=[1, 1], pads=[1, 1, 1, 1])
    x = b.node("Relu", [x], "relu1.out", "relu1")
    x = b.quantize(x, "act1", 2.0**-bits, bits, signed=False)
    x = b.node("MaxPool", [x], "pool.out", "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = b.conv(x, "conv2", (12, 8, 3, 3), 2.0**-bits, bits, strides=[2, 2], pads=[1, 1, 1, 1])
    x = b.node("Relu", [x], "relu2.out", "relu2")
    x = b.quantize(x, "act2", 2.0**-bits, bits, signed=False)
    x = b.node("Flatten", [x], "flatten.out", "flatten", axis=1)
    x = b.gemm(x, "fc1", (16, 12 * 9), 2.0**-bits, bits)
    x = b.node("Relu", [x], "relu3.out", "relu3")
    x = b.quantize(x, "act3", 2.0**-bits, bits, signed=False)
    x = b.gemm(x, "fc2", (10, 16), 2.0**-bits, 8)
    return b.model(x, (1, 12, 12), 10)


def residual_net(bits: int = 4, seed: int = 0) -> onnx.ModelProto:
    """Stem, an identity block, a strided block with a 1x1 shortcut, global average pooling, on (3, 16, 16)."""
    b = CanonicalBuilder(seed)
    scale = 2.0**-bits
    x = b.quantize("image", "input", INPUT_SCALE, 8, signed=True)
    x = b.conv(x, "stem", (16, 3, 3, 3), INPUT_SCALE, 8, strides=[1, 1], pads=[1, 1, 1, 1])
    x = b.node("Relu", [x], "stem.relu.out", "stem.relu")
    x = b.quantize(x, "stem.act", scale, bits, signed=False)
    for block, (inputs, outputs, stride) in enumerate([(16, 16, 1), (16, 32, 2)]):
        p = f"block{block}"
        y = b.conv(x, f"{p}.conv1", (outputs, inputs, 3, 3), scale, bits, strides=[stride, stride], pads=[1, 1, 1, 1])
        y = b.node("Relu", [y], f"{p}.relu1.out", f"{p}.relu1")
        y = b.quantize(y, f"{p}.act1", scale, bits, signed=False)
        y = b.conv(y, f"{p}.conv2", (outputs, outputs, 3, 3), scale, bits, strides=[1, 1], pads=[1, 1, 1, 1])
        y = b.quantize(y, f"{p}.branch", scale * 2, bits, signed=True)
        if stride != 1 or inputs != outputs:
            x = b.conv(
                x,
                f"{p}.shortcut",
                (outputs, inputs, 1, 1),
                scale,
                bits,
                strides=[stride, stride],
                pads=[0, 0, 0, 0],
            )
            x = b.quantize(x, f"{p}.skip", scale * 2, bits, signed=True)
        x = b.node("Add", [y, x], f"{p}.add.out", f"{p}.add")
        x = b.node("Relu", [x], f"{p}.relu2.out", f"{p}.relu2")
        x = b.quantize(x, f"{p}.act2", scale, bits, signed=False)
    x = b.node("GlobalAveragePool", [x], "pool.out", "pool")
    x = b.quantize(x, "pool.act", scale / 16, 8, signed=False)
    x = b.node("Flatten", [x], "flatten.out", "flatten", axis=1)
    x = b.gemm(x, "fc", (10, 32), scale / 16, 8)
    return b.model(x, (3, 16, 16), 10)
