"""Adjoints of the Reduce operators, along any axes but the batch's.

What all inputs share (the gradient of a sum or a mean) is kept at one value for each result until something makes it
dense. Of equal extremes each takes the same share, as torch.amax has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import Shape, attributes, input_name
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = [
    "reduce_extreme",
    "reduce_l1",
    "reduce_l2",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "reduce_mean",
    "reduce_product",
    "reduce_sum",
    "reduce_sum_square",
]

LEAST = 1e-30  # instead of a norm of 0, whose gradient is taken as 0
MOST_FACTORS = 256  # of a product, whose adjoint takes the square of their number


@dataclass(frozen=True)
class Reduction:
    """Axes, and the shape of the result with the reduced axes kept at size 1."""

    axes: tuple[int, ...]
    kept: Shape


def reduction(tape: Tape, node: onnx.NodeProto) -> Reduction:
    source, given = tape.graph.shape(node.input[0]), tape.graph.constant(node, 1)
    computed = given is None and bool(input_name(node, 1))
    if not computed and (given is None or not given.size):
        axes = () if attributes(node).get("noop_with_empty_axes", 0) else tuple(range(len(source)))
    else:
        axes = () if given is None else tuple(sorted({int(axis) % len(source) for axis in given}))
    if computed or any(source[axis] is None for axis in axes):
        raise UnsupportedOperator(f"{node.op_type} along the batch, or along computed axes", where=node_label(node))
    return Reduction(axes, tuple(1 if axis in axes else size for axis, size in enumerate(source)))


def kept_cotangent(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent, kept: Shape) -> str:
    tensor, shape = tape.dense(cotangent, tape.graph.shape(node.output[0])), tape.graph.shape(node.output[0])
    return tensor if shape == kept else tape.reshape(tensor, kept)


def kept_output(tape: Tape, node: onnx.NodeProto, kept: Shape) -> str:
    return node.output[0] if tape.graph.shape(node.output[0]) == kept else tape.reshape(node.output[0], kept)


def reduce_sum(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return [Cotangent(kept_cotangent(tape, node, cotangent, reduction(tape, node).kept), spread=True), None]


def reduce_mean(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    found, source = reduction(tape, node), tape.graph.shape(node.input[0])
    count = math.prod(int(source[axis] or 0) for axis in found.axes)
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    share = tape.emit("Mul", [tape.reshape(tensor, found.kept), tape.constant(1 / count)])
    return [Cotangent(share, spread=True), None]


def reduce_extreme(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """ReduceMax and ReduceMin."""
    found = reduction(tape, node)
    output = kept_output(tape, node, found.kept)
    winners = tape.indicator((tape.emit("Equal", [node.input[0], output]),))
    count = tape.emit("ReduceSum", [winners, tape.integers(found.axes)], keepdims=1)
    part = tape.emit("Div", [kept_cotangent(tape, node, cotangent, found.kept), count])
    return [Cotangent(tape.emit("Mul", [winners, part])), None]


def reduce_l1(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return weighted(tape, node, cotangent, tape.emit("Sign", [node.input[0]]))


def reduce_l2(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY X / Y."""
    norm = tape.emit("Max", [kept_output(tape, node, reduction(tape, node).kept), tape.constant(LEAST)])
    return weighted(tape, node, cotangent, tape.emit("Div", [node.input[0], norm]))


def reduce_sum_square(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return weighted(tape, node, cotangent, tape.scaled(node.input[0], 2.0))


def reduce_log_sum(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY exp(-Y)."""
    found = reduction(tape, node)
    inverse = tape.emit("Exp", [tape.emit("Neg", [kept_output(tape, node, found.kept)])])
    share = tape.emit("Mul", [kept_cotangent(tape, node, cotangent, found.kept), inverse])
    return [Cotangent(share, spread=True), None]


def reduce_log_sum_exp(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY exp(X - Y)."""
    output = kept_output(tape, node, reduction(tape, node).kept)
    return weighted(tape, node, cotangent, tape.emit("Exp", [tape.emit("Sub", [node.input[0], output])]))


def reduce_product(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX_i is dY times the product of the others, which is right where factors are 0: they are multiplied anew."""
    found, source = reduction(tape, node), tape.graph.shape(node.input[0])
    others = [axis for axis in range(len(source)) if axis not in found.axes]
    count = math.prod(int(source[axis] or 0) for axis in found.axes)
    if count > MOST_FACTORS:
        raise UnsupportedOperator(f"ReduceProd of more than {MOST_FACTORS} factors", where=node_label(node))
    order, left = [*others, *found.axes], [source[axis] for axis in others]
    moved = [source[axis] for axis in order]
    rows = tape.emit("Transpose", [node.input[0]], perm=order)
    rows = tape.reshape(rows, (*left, 1, count))
    own = np.eye(count)
    masked = tape.emit("Add", [tape.emit("Mul", [rows, tape.constant(1 - own)]), tape.constant(own)])
    product = tape.emit("ReduceProd", [masked, tape.integers([-1])], keepdims=0)
    back = tape.emit(
        "Transpose", [tape.reshape(product, tuple(moved))], perm=[order.index(axis) for axis in range(len(source))]
    )
    return weighted(tape, node, cotangent, back)


def weighted(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent, slope: str) -> list[Cotangent | None]:
    """The cotangent of each result times the slope (of the input's shape) of that result by each of its values."""
    tensor = kept_cotangent(tape, node, cotangent, reduction(tape, node).kept)
    return [Cotangent(tape.emit("Mul", [slope, tensor])), None]
