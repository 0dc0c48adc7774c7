"""Adjoints of activation functions: the cotangent times the slope, written in the values that are at hand.

At a kink the slope is the one that torch.autograd takes: that of the left piece for the family of Relu.
"""

from __future__ import annotations

import onnx

from hardbit.graph.gradient.primal import attributes
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = [
    "celu",
    "elu",
    "hard_sigmoid",
    "hard_swish",
    "leaky_relu",
    "mish",
    "prelu",
    "selu",
    "sigmoid",
    "softplus",
    "softsign",
    "tanh",
    "thresholded_relu",
]

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # the defaults of the specification


def leaky_relu(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    alpha = attributes(node).get("alpha", 0.01)
    slope = tape.emit("Add", [tape.scaled(above(tape, node, 0.0), 1 - alpha), tape.constant(alpha)])
    return [tape.times(cotangent, node, slope)]


def prelu(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """The slope on the left is the second input, broadcast."""
    tape.require_constant(node, 1, "slope")
    positive = above(tape, node, 0.0)
    negative = tape.emit("Sub", [tape.constant(1.0), positive])
    slope = tape.emit("Add", [tape.emit("Mul", [negative, node.input[1]]), positive])
    return [tape.times(cotangent, node, slope), None]


def thresholded_relu(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    threshold = tape.constant(attributes(node).get("alpha", 1.0))
    return [cotangent.masked(tape.emit("Greater", [node.input[0], threshold]))]


def elu(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return exponential_unit(tape, node, cotangent, 1.0, attributes(node).get("alpha", 1.0), 1.0)


def selu(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    options = attributes(node)
    gamma = options.get("gamma", SELU_GAMMA)
    return exponential_unit(tape, node, cotangent, gamma, gamma * options.get("alpha", SELU_ALPHA), 1.0)


def celu(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    alpha = attributes(node).get("alpha", 1.0)
    return exponential_unit(tape, node, cotangent, 1.0, alpha, 1 / alpha)


def exponential_unit(
    tape: Tape, node: onnx.NodeProto, cotangent: Cotangent, slope: float, amplitude: float, rate: float
) -> list[Cotangent | None]:
    """Y = slope X where X > 0, else amplitude (exp(rate X) - 1)."""
    positive = above(tape, node, 0.0)
    below = tape.scaled(tape.emit("Min", [node.input[0], tape.constant(0.0)]), rate)  # exp of no large number
    decay = tape.scaled(tape.emit("Exp", [below]), amplitude * rate)
    # Where X > 0 the exponential is 1: the difference of the two slopes remains to be added.
    jump = tape.scaled(positive, slope - amplitude * rate)
    return [tape.times(cotangent, node, tape.emit("Add", [decay, jump]))]


def sigmoid(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY Y (1 - Y)."""
    output = node.output[0]
    slope = tape.emit("Mul", [output, tape.emit("Sub", [tape.constant(1.0), output])])
    return [tape.times(cotangent, node, slope)]


def hard_sigmoid(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """alpha strictly between the bounds 0 and 1, else 0."""
    output = node.output[0]
    tensor = tape.dense(cotangent, tape.graph.shape(output))
    share = Cotangent(tape.scaled(tensor, attributes(node).get("alpha", 0.2)))
    inside = (tape.emit("Greater", [output, tape.constant(0.0)]), tape.emit("Less", [output, tape.constant(1.0)]))
    return [share.masked(*inside)]


def tanh(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY (1 - Y^2)."""
    return [tape.times(cotangent, node, one_minus_square(tape, node.output[0]))]


def hard_swish(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = X clip(X / 6 + 1/2, 0, 1): the slope is X / 3 + 1/2 between -3 and 3, 0 to the left, 1 to the right."""
    x = node.input[0]
    right = tape.indicator((tape.emit("GreaterOrEqual", [x, tape.constant(3.0)]),))
    inside = tape.emit("Sub", [above(tape, node, -3.0), right])
    ramp = tape.emit("Add", [tape.scaled(x, 1 / 3), tape.constant(0.5)])
    slope = tape.emit("Add", [tape.emit("Mul", [ramp, inside]), right])
    return [tape.times(cotangent, node, slope)]


def mish(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = X t with t = tanh(softplus(X)): the slope is t + X (1 - t^2) sigmoid(X) (Misra 2019, arXiv:1908.08681)."""
    x = node.input[0]
    gate = tape.emit("Tanh", [tape.emit("Softplus", [x])])
    rise = tape.emit("Mul", [tape.emit("Mul", [x, one_minus_square(tape, gate)]), tape.emit("Sigmoid", [x])])
    return [tape.times(cotangent, node, tape.emit("Add", [gate, rise]))]


def softplus(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return [tape.times(cotangent, node, tape.emit("Sigmoid", [node.input[0]]))]


def softsign(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY / (1 + |X|)^2."""
    root = tape.emit("Add", [tape.emit("Abs", [node.input[0]]), tape.constant(1.0)])
    return [tape.times(cotangent, node, tape.emit("Reciprocal", [tape.emit("Mul", [root, root])]))]


def above(tape: Tape, node: onnx.NodeProto, threshold: float) -> str:
    """1 where the input of a node is greater, else 0."""
    return tape.indicator((tape.emit("Greater", [node.input[0], tape.constant(threshold)]),))


def one_minus_square(tape: Tape, tensor: str) -> str:
    return tape.emit("Sub", [tape.constant(1.0), tape.emit("Mul", [tensor, tensor])])
