"""Which layers of a canonical graph are quantized: the one definition that passes, legality and proofs share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.graph.onnx_graph import OnnxGraph, float_reason

__all__ = [
    "VALUE_MOVING",
    "QuantizedLayer",
    "bias_is_on_grid",
    "bias_unit",
    "bias_values",
    "dequantizer_of",
    "quantized_layers",
]

LAYER_OPERATORS = ("Conv", "Gemm", "MatMul")
VALUE_MOVING = ("Flatten", "Identity", "MaxPool", "Reshape", "Transpose")
"""Operators that pick or rearrange values without computing any: on codes they do what they do on numbers."""


@dataclass(frozen=True)
class QuantizedLayer:
    """A Conv, Gemm or MatMul both of whose operands are dequantized codes, and which is not declared float."""

    node: onnx.NodeProto
    activation: onnx.NodeProto
    weight: onnx.NodeProto


def quantized_layers(graph: OnnxGraph) -> list[QuantizedLayer]:
    """Every layer whose two operands come from a DequantizeLinear, directly or through value-moving operators; those
    that declare themselves float do not count."""
    layers = []
    for node in graph.nodes:
        if node.op_type in LAYER_OPERATORS and node.domain in ("", "ai.onnx") and float_reason(node) is None:
            activation, weight = (dequantizer_of(graph, tensor) for tensor in node.input[:2])
            if activation is not None and weight is not None:
                layers.append(QuantizedLayer(node, activation, weight))
    return layers


def dequantizer_of(graph: OnnxGraph, tensor: str) -> onnx.NodeProto | None:
    """The DequantizeLinear whose values `tensor` holds, if any."""
    node = graph.producer(tensor)
    while node is not None and node.op_type in VALUE_MOVING:
        node = graph.producer(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def bias_unit(graph: OnnxGraph, layer: QuantizedLayer) -> NDArray[np.float32] | None:
    """What one count of the layer's accumulator is worth, (channels,) or (): float32(s_x * s_w). None if unknown."""
    s_x, s_w = graph.operand(layer.activation, 1), graph.operand(layer.weight, 1)
    if s_x is None or s_w is None or s_x.size != 1:
        return None
    return np.asarray(s_x.reshape(()).astype(np.float32) * s_w.astype(np.float32))


def bias_values(graph: OnnxGraph, layer: QuantizedLayer) -> NDArray[np.float32] | None:
    """The bias that the layer adds, as float32 numbers; None when it has none or when it is computed at run time."""
    if len(layer.node.input) < 3 or not layer.node.input[2]:
        return None
    tensor = layer.node.input[2]
    constant = graph.constant(tensor)
    if constant is not None:
        return constant.astype(np.float32)
    dequantize = graph.producer(tensor)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    codes, scale = graph.operand(dequantize, 0), graph.operand(dequantize, 1)
    if codes is None or scale is None:
        return None
    return np.asarray(codes.astype(np.float32) * scale.astype(np.float32))


def bias_is_on_grid(graph: OnnxGraph, layer: QuantizedLayer) -> bool:
    """Whether the layer has no bias, or int32 codes with zero point 0 whose scale is, bit for bit, `bias_unit`."""
    if len(layer.node.input) < 3 or not layer.node.input[2]:
        return True
    dequantize = graph.producer(layer.node.input[2])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return False
    codes, scale, zero_point = (graph.operand(dequantize, index) for index in range(3))
    unit = bias_unit(graph, layer)
    if codes is None or scale is None or unit is None or codes.dtype != np.int32:
        return False
    if zero_point is not None and np.any(zero_point):
        return False
    return bool(np.array_equal(np.broadcast_to(scale, codes.shape), np.broadcast_to(unit, codes.shape)))
