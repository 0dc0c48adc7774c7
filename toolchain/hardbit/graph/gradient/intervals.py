"""Bounds on the values of tensors, as far as the graph itself gives them.

A clipping mask that the bounds show to be all ones need not be computed: a global average of values in [0, 15 s]
does not leave the range of a quantizer that reaches further.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from hardbit.graph.gradient.primal import PrimalGraph, attributes

__all__ = ["EVERYTHING", "Interval", "integer_bounds", "value_intervals"]

Interval = tuple[float, float]
INTEGER_BOUNDS: dict[int, Interval] = {
    TensorProto.UINT8: (0.0, 255.0),
    TensorProto.INT8: (-128.0, 127.0),
    TensorProto.UINT16: (0.0, 65535.0),
    TensorProto.INT16: (-32768.0, 32767.0),
}
EVERYTHING: Interval = (-math.inf, math.inf)
KEEPS_RANGE = frozenset(
    {
        *("Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth"),
        *("MaxPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceMin"),
        *("Slice", "Split", "Gather", "Expand", "Tile"),
    }
)
RANGES: dict[str, Interval] = {
    **dict.fromkeys(("Softmax", "Sigmoid", "HardSigmoid"), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Softsign", "Erf", "Sign"), (-1.0, 1.0)),
}


def value_intervals(graph: PrimalGraph) -> dict[str, Interval]:
    """Bounds of every tensor, infinite where nothing is known. Integer tensors are bounded in codes."""
    found: dict[str, Interval] = {
        name: (float(np.min(value)), float(np.max(value)))
        for name, value in graph.constants.items()
        if value.size and value.dtype.kind in "iuf"
    }
    for node in graph.nodes:
        for name in node.output:
            found[name] = interval(graph, node, found)
    return found


def interval(graph: PrimalGraph, node: onnx.NodeProto, found: dict[str, Interval]) -> Interval:
    low, high = found.get(node.input[0], EVERYTHING) if node.input else EVERYTHING
    match node.op_type:
        case "Relu":
            return max(low, 0.0), max(high, 0.0)
        case "Clip":
            bounds = [graph.constant(node, position) for position in (1, 2)]
            low = low if bounds[0] is None else max(low, float(bounds[0]))
            return low, high if bounds[1] is None else min(high, float(bounds[1]))
        case "QuantizeLinear":
            return integer_bounds(graph.dtypes.get(node.output[0], 0)) or EVERYTHING
        case "DequantizeLinear":
            return dequantized(graph, node, low, high)
        case "AveragePool":
            options = attributes(node)
            padded = any(options.get("pads", [])) or options.get("auto_pad", "NOTSET").startswith("SAME")
            return (min(low, 0.0), max(high, 0.0)) if padded else (low, high)
        case operator if operator in RANGES:
            return RANGES[operator]
        case "Add":
            other = found.get(node.input[1], EVERYTHING)
            return low + other[0], high + other[1]
        case operator if operator in KEEPS_RANGE:
            return low, high
    return EVERYTHING


def dequantized(graph: PrimalGraph, node: onnx.NodeProto, low: float, high: float) -> Interval:
    scale, zero_point = graph.constant(node, 1), graph.constant(node, 2)
    codes = integer_bounds(graph.dtypes.get(node.input[0], 0))
    if scale is None or scale.size != 1 or codes is None:
        return EVERYTHING
    zero = 0.0 if zero_point is None else float(zero_point.reshape(-1)[0])
    low, high = max(low, codes[0]), min(high, codes[1])
    return (low - zero) * float(scale.reshape(-1)[0]), (high - zero) * float(scale.reshape(-1)[0])


def integer_bounds(dtype: int) -> Interval | None:
    """Least and greatest value of an 8- or 16-bit ONNX integer type, else None."""
    return INTEGER_BOUNDS.get(dtype)
