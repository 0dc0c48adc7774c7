"""Adjoints of Gemm, of MatMul, and of BatchNormalization at inference."""

from __future__ import annotations

import numpy as np
import onnx

from hardbit.graph.gradient.elementwise import sum_to_shape
from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import attributes, input_name
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["batch_normalization", "gemm", "matmul"]


def gemm(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = alpha A' B' + beta C, A' and B' being the operands or their transposes: dA' = alpha dY B'^T,
    dB' = alpha A'^T dY, dC = beta dY summed to its shape."""
    result = tape.graph.shape(node.output[0])
    tensor = tape.dense(cotangent, result)
    shares = [gemm_share(tape, node, tensor, position) for position in range(2)]
    third = input_name(node, 2)
    if third not in tape.active:
        return [*shares, None]
    beta = attributes(node).get("beta", 1.0)
    scaled = tensor if beta == 1 else tape.scaled(tensor, beta)
    return [*shares, Cotangent(sum_to_shape(tape, scaled, result, tape.graph.shape(third)))]


def gemm_share(tape: Tape, node: onnx.NodeProto, tensor: str, position: int) -> Cotangent | None:
    """The cotangent of the first operand (position 0) or the second (1)."""
    if node.input[position] not in tape.active:
        return None
    options, other = attributes(node), node.input[1 - position]
    own, others = (options.get(("transA", "transB")[k], 0) for k in (position, 1 - position))
    # dA' and dB' as products; of an operand that is read transposed the product is turned round.
    factors = [(tensor, 0), (other, 1 - others)] if position == 0 else [(other, 1 - others), (tensor, 0)]
    if own:
        factors = [(name, 1 - flip) for name, flip in reversed(factors)]
    names, flips = zip(*(folded_transpose(tape, name, flip) for name, flip in factors), strict=True)
    transposed = {attribute: 1 for attribute, flip in zip(("transA", "transB"), flips, strict=True) if flip}
    return Cotangent(tape.emit("Gemm", list(names), alpha=options.get("alpha", 1.0), **transposed))


def folded_transpose(tape: Tape, name: str, flip: int) -> tuple[str, int]:
    """A factor of a Gemm and whether Gemm is to transpose it; a constant is transposed offline."""
    if name not in tape.graph.constants:
        return name, flip
    matrix = tape.graph.constants[name].astype(np.float32)
    return tape.constant(matrix.T if flip else matrix), 0


def matmul(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = A B for the last two axes, broadcast over the others: dA = dY B^T, dB = A^T dY.

    A constant vector is a row on the left, a column on the right.
    """
    shapes = [tape.graph.shape(name) for name in node.input]
    if any(len(shape) < 2 and name in tape.active for name, shape in zip(node.input, shapes, strict=True)):
        raise UnsupportedOperator("MatMul of a vector that depends on the image", where=node_label(node))
    result = tape.graph.shape(node.output[0])
    tensor = tape.dense(cotangent, result)
    if any(len(shape) < 2 for shape in shapes):
        result = (*result[:-1], 1, result[-1]) if len(shapes[0]) < 2 else (*result, 1)
        tensor = tape.reshape(tensor, result)
    shares: list[Cotangent | None] = []
    for position, (name, shape) in enumerate(zip(node.input, shapes, strict=True)):
        if name not in tape.active:
            shares.append(None)
            continue
        other = transposed(tape, node.input[1 - position], is_row=position == 1)
        share = tape.emit("MatMul", [tensor, other] if position == 0 else [other, tensor])
        shares.append(Cotangent(sum_to_shape(tape, share, (*result[:-2], *shape[-2:]), shape)))
    return shares


def transposed(tape: Tape, name: str, is_row: bool) -> str:
    """A tensor with its last two axes exchanged; of a constant, a constant; a vector is a row or a column."""
    if name in tape.graph.constants:
        value = tape.graph.constants[name]
        matrix = value if value.ndim > 1 else value[None, :] if is_row else value[:, None]
        return tape.constant(np.swapaxes(matrix, -1, -2))
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
