"""Declare, in somebody's Q/DQ graph, what is computed in float and why."""

from __future__ import annotations

import onnx

from hardbit.graph.canonical_form import FLOAT_OPERATORS, OPERATORS
from hardbit.graph.onnx_graph import OnnxGraph, float_reason, mark_float
from hardbit.graph.quantized_layers import dequantizer_of, quantized_layers
from hardbit.ptq.float_reasons import PREPROCESSING, reason_for
from hardbit.targets.onnxruntime import execution_problems

__all__ = ["NOT_QUANTIZED", "declare_floats"]

NOT_QUANTIZED = "the file leaves it in float"
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def declare_floats(graph: OnnxGraph) -> None:
    """Mark, in place, every node that no integer kernel computes: preprocessing, operators of floats, layers and sums
    whose operands are not all codes, and layers that the target would run in float, with the target's own words."""
    pixels = _before_quantizers(graph)
    integer = {layer.node.name for layer in quantized_layers(graph)}
    for node in graph.nodes:
        if float_reason(node) is None:
            mark_float(node, _reason(graph, node, pixels, integer))
    for where, message, _ in list(execution_problems(graph)):
        culprit = next((node for node in graph.nodes if node.name == where), None)
        if culprit is not None:
            mark_float(culprit, message)


def _reason(graph: OnnxGraph, node: onnx.NodeProto, pixels: set[str], integer: set[str]) -> str | None:
    operator = node.op_type
    if operator in ("QuantizeLinear", "DequantizeLinear") or (node.name in integer and operator != "MatMul"):
        return None
    if operator in _LAYERS:
        weights = node.input[1]
        constant = graph.is_constant(weights) or dequantizer_of(graph, weights) is not None
        return NOT_QUANTIZED if constant and operator != "ConvTranspose" else reason_for(operator)
    if any(name in pixels for name in node.input):
        return PREPROCESSING
    if operator == "Add":
        return None if all(dequantizer_of(graph, name) is not None for name in node.input) else reason_for(operator)
    if operator == "Clip":
        source = graph.producer(node.input[0])
        return None if source is not None and source.op_type == "QuantizeLinear" else reason_for(operator)
    return reason_for(operator) if operator in FLOAT_OPERATORS or operator not in OPERATORS else None


def _before_quantizers(graph: OnnxGraph) -> set[str]:
    """Tensors of the image that neither a quantizer nor a layer has touched."""
    found = {value.name for value in graph.inputs}
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" and node.op_type not in _LAYERS and any(n in found for n in node.input):
            found.update(node.output)
    return found
