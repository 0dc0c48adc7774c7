"""Adjoints of what divides a tensor by a quantity of its own: LayerNormalization and Softmax."""

from __future__ import annotations

import onnx

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import attributes
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["layer_normalization", "softmax"]


def layer_normalization(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = scale n + bias with n = (X - mean) / deviation over the last axes: with h = dY scale,
    dX = (h - mean(h) - n mean(h n)) / deviation (Ba, Kiros and Hinton 2016, arXiv:1607.06450).

    Mean and 1 / deviation are further outputs of the forward node.
    """
    if any(name in tape.active for name in node.input[1:]):
        raise UnsupportedOperator("LayerNormalization whose scale depends on the image", where=node_label(node))
    shape = tape.graph.shape(node.output[0])
    first = attributes(node).get("axis", -1) % len(shape)
    axes = tape.integers(tuple(range(first, len(shape))))

    def mean(tensor: str) -> str:
        return tape.emit("ReduceMean", [tensor, axes], keepdims=1)

    centred = tape.emit("Sub", [node.input[0], tape.further_output(node, 1)])
    inverse_deviation = tape.further_output(node, 2)
    normal = tape.emit("Mul", [centred, inverse_deviation])
    scaled = tape.emit("Mul", [tape.dense(cotangent, shape), node.input[1]])
    along = tape.emit("Mul", [normal, mean(tape.emit("Mul", [scaled, normal]))])
    across = tape.emit("Sub", [tape.emit("Sub", [scaled, mean(scaled)]), along])
    return [Cotangent(tape.emit("Mul", [across, inverse_deviation])), None, None]


def softmax(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = Y (dY - sum(dY Y))."""
    shape = tape.graph.shape(node.output[0])
    axis = tape.integers([attributes(node).get("axis", -1) % len(shape)])
    output, tensor = node.output[0], tape.dense(cotangent, shape)
    total = tape.emit("ReduceSum", [tape.emit("Mul", [tensor, output]), axis], keepdims=1)
    return [Cotangent(tape.emit("Mul", [output, tape.emit("Sub", [tensor, total])]))]
