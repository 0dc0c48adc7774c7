"""Where the float32 arithmetic of an integer network may round outside of its quantizers, though rarely does.

Scales make every product and every sum exact while |sum of codes| * 2^5 <= 2^24 (docs/exact-arithmetic.md). The bound
here is on what the codes could add up to at worst; what images make of them stays far below as a rule.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from hardbit.graph.onnx_graph import OnnxGraph, attribute, float_reason
from hardbit.graph.quantized_layers import VALUE_MOVING, QuantizedLayer, quantized_layers

__all__ = ["rounding_places"]

EXACT = 2.0**24  # whole numbers up to here are float32 numbers
SIGNIFICAND = 2.0**5  # of a weight scale


def rounding_places(model: onnx.ModelProto) -> list[dict[str, str]]:
    """[{"name", "reason"}] of the nodes of a canonical graph whose float32 results may depend on the order of adding,
    so that the quantizer behind them may see either side of a border between codes.

    Nodes that declare themselves float are not asked, nor is a layer that ends in logits.
    """
    graph = OnnxGraph(model)
    shapes = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    found = {
        layer.node.name: "its sums can outgrow the whole numbers of float32"
        for layer in quantized_layers(graph)
        if _is_quantized(graph, layer.node) and _largest_sum(graph, layer) * SIGNIFICAND > EXACT
    }
    for node in graph.nodes:
        count = _averaged(node, shapes)
        if count & (count - 1):
            found[node.name] = f"an average of {count} values has no finite binary form"
    return [{"name": node.name, "reason": found[node.name]} for node in graph.nodes if node.name in found]


def _is_quantized(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    """Whether a quantizer reads what `node` gives, rectified, moved or added to codes."""
    pending = graph.consumers(node.output[0])
    while pending:
        reader = pending.pop()
        if reader.op_type == "QuantizeLinear":
            return True
        if reader.op_type in ("Relu", *VALUE_MOVING) or (reader.op_type == "Add" and float_reason(reader) is None):
            pending += graph.consumers(reader.output[0])
    return False


def _largest_sum(graph: OnnxGraph, layer: QuantizedLayer) -> float:
    """The largest |sum of code times code + bias code| of any channel, whatever the input."""
    weights, zero_point = graph.operand(layer.weight, 0), graph.operand(layer.activation, 2)
    if weights is None or zero_point is None:
        return math.inf
    limits, clip = np.iinfo(zero_point.dtype), graph.producer(layer.activation.input[0])
    low, high = int(limits.min), int(limits.max)
    if clip is not None and clip.op_type == "Clip":
        bounds = [graph.operand(clip, index) for index in (1, 2)]
        low = low if bounds[0] is None else int(bounds[0].item())
        high = high if bounds[1] is None else int(bounds[1].item())
    reach = max(abs(code - int(zero_point.item())) for code in (low, high))
    weight_zero = graph.operand(layer.weight, 2)
    offset = 0.0 if weight_zero is None else float(weight_zero.flat[0])
    sums = np.abs(weights.astype(np.float64) - offset).reshape(len(weights), -1).sum(1) * reach
    bias = graph.producer(layer.node.input[2]) if len(layer.node.input) > 2 and layer.node.input[2] else None
    codes = graph.operand(bias, 0) if bias is not None else None
    return float((sums + (0.0 if codes is None else np.abs(codes.astype(np.float64)))).max())


def _averaged(node: onnx.NodeProto, shapes: dict[str, onnx.ValueInfoProto]) -> int:
    """How many values each average of `node` is of; 1 for what is no average."""
    if node.op_type == "AveragePool":
        return math.prod(attribute(node, "kernel_shape", [1]))  # type: ignore[call-overload, no-any-return]
    if node.op_type == "GlobalAveragePool" and node.input[0] in shapes:
        return math.prod(d.dim_value for d in shapes[node.input[0]].type.tensor_type.shape.dim[2:])
    return 1
