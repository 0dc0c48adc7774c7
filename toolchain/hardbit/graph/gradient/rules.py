"""Which adjoint belongs to which ONNX operator."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hardbit.graph.gradient import (
    convolution,
    elementwise,
    linear,
    normalization,
    pooling,
    quantization,
    selection,
    shape,
)
from hardbit.graph.gradient.tape import Rule

__all__ = ["RULES", "supported_operators"]

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Add": elementwise.add,
        "AveragePool": pooling.average_pool,
        "BatchNormalization": linear.batch_normalization,
        "Cast": elementwise.cast,
        "Clip": elementwise.clip,
        "Concat": shape.concat,
        "Conv": convolution.conv,
        "DequantizeLinear": quantization.dequantize,
        "Div": elementwise.divide,
        "Erf": elementwise.erf,
        "Flatten": shape.reshape,
        "Gather": selection.gather,
        "Gemm": linear.gemm,
        "GlobalAveragePool": pooling.global_average_pool,
        "Identity": elementwise.identity,
        "LayerNormalization": normalization.layer_normalization,
        "MatMul": linear.matmul,
        "MaxPool": pooling.max_pool,
        "Mul": elementwise.multiply,
        "QuantizeLinear": quantization.quantize,
        "ReduceMean": pooling.reduce_mean,
        "Relu": elementwise.relu,
        "Reshape": shape.reshape,
        "Slice": selection.slice_,
        "Softmax": normalization.softmax,
        "Squeeze": shape.reshape,
        "Sub": elementwise.subtract,
        "Transpose": shape.transpose,
        "Unsqueeze": shape.reshape,
    }
)


def supported_operators() -> list[str]:
    """Names of the ONNX operators that can stand between image and logits."""
    return sorted(RULES)
