"""Adjoints of Gemm with a constant second operand, of MatMul, and of BatchNormalization at inference."""

from __future__ import annotations

import numpy as np
import onnx

from hardbit.graph.gradient.elementwise import sum_to_shape
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
    """Y = A B for the last two axes, broadcast over the others: dA = dY B^T, dB = A^T dY."""
    shapes = [tape.graph.shape(name) for name in node.input]
    if any(len(shape) < 2 for shape in shapes):
        raise UnsupportedOperator("MatMul of a vector", where=node_label(node))
    result = tape.graph.shape(node.output[0])
    tensor = tape.dense(cotangent, result)
    shares: list[Cotangent | None] = []
    for position, (name, shape) in enumerate(zip(node.input, shapes, strict=True)):
        if name not in tape.active:
            shares.append(None)
            continue
        other = transposed(tape, node.input[1 - position])
        share = tape.emit("MatMul", [tensor, other] if position == 0 else [other, tensor])
        shares.append(Cotangent(sum_to_shape(tape, share, (*result[:-2], *shape[-2:]), shape)))
    return shares


def transposed(tape: Tape, name: str) -> str:
    """A tensor with its last two axes exchanged; of a constant, a constant."""
    if name in tape.graph.constants:
        return tape.constant(np.swapaxes(tape.graph.constants[name], -1, -2))
    order = list(range(len(tape.graph.shape(name))))
    order[-2:] = order[-1], order[-2]
    return tape.emit("Transpose", [name], perm=order)


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
