"""How to tell a network that somebody quantized already from one in float."""

from __future__ import annotations

import onnx

__all__ = ["QUANTIZED_DOMAINS", "QUANTIZERS", "is_quantized", "is_quantizing"]

QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
QUANTIZED_DOMAINS = ("com.microsoft", *QONNX_DOMAINS)
"""Domains beside the standard one whose quantized operators are known: ONNX Runtime's and QONNX."""
QUANTIZERS = frozenset(
    {"BipolarQuant", "DequantizeLinear", "DynamicQuantizeLinear", "Quant", "QuantizeLinear", "Trunc"}
)
_INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "QGemm"})


def is_quantizing(node: onnx.NodeProto) -> bool:
    """Whether `node` makes codes of numbers, numbers of codes, or computes on codes."""
    return node.op_type in QUANTIZERS | _INTEGER_OPERATORS or node.op_type.startswith("QLinear")


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a model holds quantized operators: Q/DQ, QOperator or QONNX."""
    return any(is_quantizing(node) for node in model.graph.node)
