"""Weights and biases of a network that is quantized already, brought to int8 and int32 codes by output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute, bits_of, mark_bits
from hardbit_deploy.errors import HardbitError

__all__ = ["Parameter", "numbers_of", "parameter_of", "write_parameter"]

_INTEGERS = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int32")


@dataclass(frozen=True)
class Parameter:
    """Numbers (codes - zero_point) * scale; `scale` and `zero_point` have one value, or one per index of `axis`."""

    codes: NDArray[Any]
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int
    bits: int | None

    def turned(self, permutation: list[int]) -> Parameter:
        axis = permutation.index(self.axis) if self.scale.size > 1 else self.axis
        return Parameter(self.codes.transpose(permutation), self.scale, self.zero_point, axis, self.bits)

    def numbers(self) -> NDArray[np.float32]:
        shape = [-1 if index == self.axis else 1 for index in range(self.codes.ndim)]
        scale, zero = (
            value.reshape(shape if value.size > 1 else ()) for value in (self.scale, self.zero_point.astype(np.int64))
        )
        return np.asarray((self.codes.astype(np.int64) - zero).astype(np.float32) * scale, np.float32)


def parameter_of(graph: OnnxGraph, tensor: str) -> Parameter | None:
    """What `tensor` holds, if it is a DequantizeLinear of constant codes or of a constant quantized on the spot, turned
    by Transposes or cut by an integer Clip perhaps. Raises HardbitError for codes of a type that no engine reads."""
    node = graph.producer(tensor)
    if node is None:
        return None
    if node.op_type == "Transpose":
        inner = parameter_of(graph, node.input[0])
        if inner is None:
            return None
        turned: Any = attribute(node, "perm", list(reversed(range(inner.codes.ndim))))
        return inner.turned(list(turned))
    if node.op_type in ("Identity", "Flatten", "Reshape") or node.op_type != "DequantizeLinear":
        return parameter_of(graph, node.input[0]) if node.op_type == "Identity" else None
    codes = _codes(graph, node.input[0])
    scale = graph.operand(node, 1)
    if codes is None or scale is None:
        return None
    if codes.dtype.name not in _INTEGERS or attribute(node, "block_size", 0):
        raise HardbitError(
            f"its codes are {codes.dtype.name}" + (" in blocks" if attribute(node, "block_size", 0) else ""),
            node.name,
            "quantize weights to int8, by tensor or by output channel",
        )
    given = graph.operand(node, 2)
    zero_point = np.zeros(scale.shape, codes.dtype) if given is None else given
    axis: Any = attribute(node, "axis", 1)
    axis = axis % codes.ndim if codes.ndim else 0
    wide = np.int32 if codes.dtype.name == "int32" else np.uint8 if codes.dtype.name.startswith("u") else np.int8
    return Parameter(codes.astype(wide), scale.astype(np.float32), zero_point.astype(wide), axis, bits_of(node))


def _codes(graph: OnnxGraph, tensor: str) -> NDArray[Any] | None:
    """The values of a constant, of a constant quantized by QuantizeLinear, or of either behind an integer Clip."""
    constant, node = graph.constant(tensor), graph.producer(tensor)
    if constant is not None or node is None:
        return constant
    if node.op_type == "Clip":
        inner = _codes(graph, node.input[0])
        bounds = [graph.operand(node, index) for index in (1, 2)]
        return None if inner is None else np.clip(inner, bounds[0], bounds[1])
    values, scale = graph.operand(node, 0), graph.operand(node, 1)
    if node.op_type != "QuantizeLinear" or values is None or scale is None:
        return None
    given = graph.operand(node, 2)
    zero_point = np.zeros(scale.shape, np.uint8) if given is None else given
    if zero_point.dtype.name not in ("int8", "uint8", "int32"):
        raise HardbitError(f"its codes are {zero_point.dtype.name}", node.name, "quantize weights to int8")
    axis: Any = attribute(node, "axis", 1)
    shape = [-1 if index == axis % max(values.ndim, 1) else 1 for index in range(values.ndim)]
    factor, zero = (v.reshape(shape if v.size > 1 else ()) for v in (scale, zero_point.astype(np.float64)))
    limits = np.iinfo(zero_point.dtype)
    codes = np.rint((values / factor).astype(np.float32)) + zero
    return np.clip(codes, limits.min, limits.max).astype(zero_point.dtype)


def numbers_of(graph: OnnxGraph, tensor: str) -> NDArray[np.float32] | None:
    """The numbers of a constant tensor, quantized or not; None for what is computed."""
    constant = graph.constant(tensor)
    if constant is not None:
        return constant.astype(np.float32)
    parameter = parameter_of(graph, tensor)
    return None if parameter is None else parameter.numbers()


def _width(codes: NDArray[Any], zero_point: NDArray[Any]) -> int:
    """The fewest bits that weight codes fit into: 1 for -1 and +1 alone."""
    if codes.dtype != np.int8 or np.any(zero_point):
        return 8
    if codes.size and np.all(np.abs(codes) == 1):
        return 1
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    return max(2, 1 + max(high, -low - 1).bit_length())


def write_parameter(graph: OnnxGraph, node: onnx.NodeProto, index: int, kind: str, parameter: Parameter) -> None:
    """Let `node` read `parameter` as input `index`, with one scale an output channel (axis 0) and zero point 0 wherever
    codes less zero point fit into int8. Raises HardbitError naming `node` where that cannot be."""
    codes, channels = parameter.codes, len(parameter.codes)
    if parameter.scale.size > 1 and (parameter.axis != 0 or parameter.scale.size != channels):
        raise HardbitError(
            f"the scale of its {kind} runs along axis {parameter.axis} of (outputs, ...)",
            node.name,
            "quantize by tensor or by output channel",
        )
    zero_point = np.broadcast_to(parameter.zero_point.ravel(), (channels,))
    if np.any(zero_point):
        wide = codes.astype(np.int32) - zero_point.astype(np.int32).reshape(-1, *[1] * (codes.ndim - 1))
        if codes.ndim == 1 or (wide.min() >= -128 and wide.max() <= 127):
            codes, zero_point = wide.astype(np.int32 if codes.ndim == 1 else np.int8), np.zeros(channels, np.int8)
        elif np.any(zero_point != zero_point[0]):
            raise HardbitError(f"its {kind} has a zero point of its own for each channel", node.name, "use one")
    elif codes.dtype == np.uint8 and codes.max(initial=0) <= 127:
        codes, zero_point = codes.astype(np.int8), zero_point.astype(np.int8)
    if codes.ndim == 1:
        codes = codes.astype(np.int32)
    scale = np.ascontiguousarray(np.broadcast_to(parameter.scale.ravel(), (channels,)))
    place = f"{node.name}.{kind}"
    inputs = [
        graph.add_constant(f"{place}.codes", np.ascontiguousarray(codes)),
        graph.add_constant(f"{place}.scale", scale),
        graph.add_constant(f"{place}.zero_point", np.ascontiguousarray(zero_point.astype(codes.dtype))),
    ]
    former = graph.producer(node.input[index]) if len(node.input) > index else None
    if former is not None and former.op_type == "DequantizeLinear" and len(graph.consumers(former.output[0])) == 1:
        graph.remove(former)
    target = graph.unused_name(f"{place}.numbers")
    name = graph.unused_node_name(f"{place}.dequantize")
    dequantize = helper.make_node("DequantizeLinear", inputs, [target], name=name, axis=0)
    mark_bits(dequantize, 32 if codes.ndim == 1 else parameter.bits or _width(codes, zero_point))
    graph.insert_before(node, dequantize)
    graph.set_input(node, index, target)
