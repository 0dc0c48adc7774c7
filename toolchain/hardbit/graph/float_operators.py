"""How operators that engines compute in float are written, and the reason that each declares.

Engines have integer kernels for convolutions, matrix products with weights, residual sums of codes, and little else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx, nn

from hardbit.graph.node_writer import NodeWriter
from hardbit.quantize.operators import argument, named_axes

__all__ = ["REASONS", "write_float_operator"]

REASONS = {
    "LayerNormalization": "every row is divided by a deviation of its own: no integer kernel does that",
    "Softmax": "exponentials, divided by their sum: no integer kernel does that",
    "MatMul": "a product of two activations around a softmax, which takes and gives floats",
    "Gelu": "a smooth function of floats: no integer kernel does that",
    "Mul": "a product of floats",
    "ReduceMean": "an average of floats",
    "Add": "a sum of floats",
}


def write_float_operator(
    writer: NodeWriter, operator: str, inputs: list[str], name: str, *, node: fx.Node, child: Any
) -> str:
    """Write an operator of `hardbit.quantize.operators.FLOAT_OPERATORS`, which `node` and its module `child` describe,
    on the tensors `inputs`; returns its output."""
    reason = REASONS[operator]
    if operator == "LayerNormalization":
        inputs = [*inputs, *_layer_norm_parameters(writer, child, name)]
        return writer.node(operator, inputs, name, axis=-1, epsilon=float(child.eps), reason=reason)
    if operator == "Softmax":
        return writer.node(operator, inputs, name, axis=int(named_axes(node, child, operator)[0]), reason=reason)
    if operator == "Gelu":
        return _write_gelu(writer, inputs[0], name)
    if operator == "ReduceMean":
        axes = writer.constant(f"{name}.axes", np.array(named_axes(node, child, operator), np.int64))
        keep = bool(argument(node, 2, "keepdim", False))
        return writer.node(operator, [*inputs, axes], name, keepdims=int(keep), reason=reason)
    if operator == "Mul":
        tensors = dict(zip(node.all_input_nodes, inputs, strict=True))
        factors: Any = node.args
        operands = [
            tensors[factor] if isinstance(factor, fx.Node) else writer.constant(f"{name}.factor", np.float32(factor))
            for factor in factors
        ]
        return writer.node(operator, operands, name, reason=reason)
    return writer.node(operator, inputs, name, reason=reason)


def _layer_norm_parameters(writer: NodeWriter, norm: nn.LayerNorm, name: str) -> list[str]:
    size = norm.normalized_shape[0]
    scale = np.ones(size, np.float32) if norm.weight is None else norm.weight.detach().numpy()
    shift = np.zeros(size, np.float32) if norm.bias is None else norm.bias.detach().numpy()
    return [writer.constant(f"{name}.weight", scale), writer.constant(f"{name}.bias", shift)]


def _write_gelu(writer: NodeWriter, tensor: str, name: str) -> str:
    """x (1 + erf(x / sqrt(2))) / 2, since opset 18 has no Gelu; the nodes' names begin with that of the whole."""
    root, one, half = (
        writer.constant(f"{name}.{word}", np.float32(value))
        for word, value in (("root", math.sqrt(2)), ("one", 1), ("half", 0.5))
    )

    def write(operator: str, inputs: list[str], place: str) -> str:
        return writer.node(operator, inputs, place, reason=REASONS["Gelu"])

    error = write("Erf", [write("Div", [tensor, root], f"{name}.scaled")], f"{name}.erf")
    product = write("Mul", [tensor, write("Add", [error, one], f"{name}.share")], f"{name}.product")
    return write("Mul", [product, half], name)
