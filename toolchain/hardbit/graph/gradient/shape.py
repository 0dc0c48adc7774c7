"""Adjoints of operators that only move values: Flatten, Reshape, Squeeze, Unsqueeze, Transpose, Concat."""

from __future__ import annotations

import onnx

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import attributes
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["concat", "reshape", "transpose"]


def reshape(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    return [Cotangent(tape.reshape(tensor, tape.graph.shape(node.input[0])))]


def transpose(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    shape = tape.graph.shape(node.output[0])
    order = list(attributes(node).get("perm", reversed(range(len(shape)))))
    back = [order.index(axis) for axis in range(len(shape))]
    return [Cotangent(tape.emit("Transpose", [tape.dense(cotangent, shape)], perm=back))]


def concat(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Each operand takes back its slice; an operand that occurs twice takes both."""
    shape = tape.graph.shape(node.output[0])
    axis = attributes(node)["axis"] % len(shape)
    tensor = tape.dense(cotangent, shape)
    shares: list[Cotangent | None] = []
    start = 0
    for name in node.input:
        size = tape.graph.shape(name)[axis]
        if size is None:
            raise UnsupportedOperator("Concat along the batch", where=node_label(node))
        bounds = [tape.integers([start]), tape.integers([start + size]), tape.integers([axis])]
        shares.append(Cotangent(tape.emit("Slice", [tensor, *bounds])) if name in tape.active else None)
        start += size
    return shares
