"""Adjoints of Gemm and MatMul with a constant second operand, and of BatchNormalization at inference."""

from __future__ import annotations

import numpy as np
import onnx

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import attributes
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["batch_normalization", "gemm", "matmul"]


def gemm(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = alpha A' B' + beta C with A' = A or its transpose: dA' = alpha dY B'^T."""
    if any(name in tape.active for name in node.input[1:]):
        raise UnsupportedOperator("Gemm whose second or third operand depends on the image", where=node_label(node))
    options = attributes(node)
    alpha = options.get("alpha", 1.0)
    matrix = constant_operand(tape, node).astype(np.float32)
    if options.get("transB", 0):
        matrix = matrix.T
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    if options.get("transA", 0):
        share = tape.emit("Gemm", [tape.constant(matrix), tensor], transB=1, alpha=alpha)
    else:
        share = tape.emit("Gemm", [tensor, tape.constant(matrix.T)], alpha=alpha)
    return [Cotangent(share)]


def matmul(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = X W with a constant matrix W, or its mirror image Y = W X."""
    position = 0 if node.input[0] in tape.active else 1
    other = tape.graph.constant(node, 1 - position)
    if other is None or other.ndim != 2 or len(tape.graph.shape(node.input[position])) < 2:
        raise UnsupportedOperator(
            "MatMul of anything but an image's tensor and a constant matrix", where=node_label(node)
        )
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    transposed = tape.constant(other.T)
    if position == 0:
        return [Cotangent(tape.emit("MatMul", [tensor, transposed])), None]
    return [None, Cotangent(tape.emit("MatMul", [transposed, tensor]))]


def batch_normalization(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """With stored statistics: a multiplication by gamma / sqrt(variance + epsilon) per channel."""
    options = attributes(node)
    gamma, variance = tape.graph.constant(node, 1), tape.graph.constant(node, 4)
    if gamma is None or variance is None or options.get("training_mode", 0):
        raise UnsupportedOperator("BatchNormalization without constant statistics", where=node_label(node))
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + options.get("epsilon", 1e-5))
    shape = tape.graph.shape(node.output[0])
    spread = tape.constant(factor.reshape(-1, *[1] * (len(shape) - 2)))
    return [Cotangent(tape.emit("Mul", [tape.dense(cotangent, shape), spread])), None, None, None, None]


def constant_operand(tape: Tape, node: onnx.NodeProto) -> np.ndarray:
    matrix = tape.graph.constant(node, 1)
    if matrix is None:
        raise UnsupportedOperator("Gemm whose second operand is not constant", where=node_label(node))
    return matrix
