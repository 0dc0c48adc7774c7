"""Graphs with float biases, as exporters without integer biases write them."""

from __future__ import annotations

import numpy as np
import onnx

from lowering_examples import constants, copy_of, with_constants


def with_float_biases(model: onnx.ModelProto, factor: float = 1.03) -> onnx.ModelProto:
    """A copy whose biases are float initializers, `factor` times what they were: off the grid unless it is 1."""
    values = constants(model)
    changed = copy_of(model)
    biases: dict[str, object] = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.name.endswith("bias.dequantize"):
            codes, scale = values[node.input[0]], values[node.input[1]]
            biases[node.output[0]] = (codes.astype(np.float32) * scale * np.float32(factor)).astype(np.float32)
            changed.graph.node.remove(node)
    return with_constants(changed, biases)
