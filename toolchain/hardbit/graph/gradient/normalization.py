"""Adjoints of what divides a tensor by a quantity of its own: norms of layer, instance and length, and Softmax."""

from __future__ import annotations

import numpy as np
import onnx

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import attributes
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = [
    "instance_normalization",
    "layer_normalization",
    "local_response_normalization",
    "log_softmax",
    "lp_normalization",
    "softmax",
]

LEAST = 1e-30  # instead of a norm of 0


def layer_normalization(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = scale n + bias with n = (X - mean) / deviation over the last axes: with h = dY scale,
    dX = (h - mean(h) - n mean(h n)) / deviation (Ba, Kiros and Hinton 2016, arXiv:1607.06450).

    Mean and 1 / deviation are further outputs of the forward node; for TensorRT, which gives none, they are computed
    once more.
    """
    if any(name in tape.active for name in node.input[1:]):
        raise UnsupportedOperator("LayerNormalization whose scale depends on the image", where=node_label(node))
    shape = tape.graph.shape(node.output[0])
    first = attributes(node).get("axis", -1) % len(shape)
    axes = tape.integers(tuple(range(first, len(shape))))
    if tape.forms == "tensorrt":
        normal, inverse_deviation = standardised(tape, node, axes)
    else:
        centred = tape.emit("Sub", [node.input[0], tape.further_output(node, 1)])
        inverse_deviation = tape.further_output(node, 2)
        normal = tape.emit("Mul", [centred, inverse_deviation])
    scaled = tape.emit("Mul", [tape.dense(cotangent, shape), node.input[1]])
    return [Cotangent(standardised_share(tape, scaled, normal, inverse_deviation, axes)), None, None]


def instance_normalization(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """The same of every channel over its pixels (Ulyanov et al. 2016, arXiv:1607.08022); the node gives its mean and
    deviation to nobody, so both are computed once more."""
    scale, shape = tape.graph.constant(node, 1), tape.graph.shape(node.output[0])
    if scale is None:
        raise UnsupportedOperator("InstanceNormalization without a constant scale", where=node_label(node))
    axes = tape.integers(tuple(range(2, len(shape))))
    normal, inverse_deviation = standardised(tape, node, axes)
    factor = tape.constant(scale.reshape(-1, *[1] * (len(shape) - 2)))
    scaled = tape.emit("Mul", [tape.dense(cotangent, shape), factor])
    return [Cotangent(standardised_share(tape, scaled, normal, inverse_deviation, axes)), None, None]


def standardised(tape: Tape, node: onnx.NodeProto, axes: str) -> tuple[str, str]:
    """(X - mean) / deviation of a node's input along `axes`, and 1 / deviation."""
    centred = tape.emit("Sub", [node.input[0], tape.emit("ReduceMean", [node.input[0], axes], keepdims=1)])
    variance = tape.emit("ReduceMean", [tape.emit("Mul", [centred, centred]), axes], keepdims=1)
    spread = tape.emit("Add", [variance, tape.constant(attributes(node).get("epsilon", 1e-5))])
    inverse_deviation = tape.emit("Reciprocal", [tape.emit("Sqrt", [spread])])
    return tape.emit("Mul", [centred, inverse_deviation]), inverse_deviation


def standardised_share(tape: Tape, scaled: str, normal: str, inverse_deviation: str, axes: str) -> str:
    """Cotangent of X, given that of n = (X - mean) / deviation along `axes`."""

    def mean(tensor: str) -> str:
        return tape.emit("ReduceMean", [tensor, axes], keepdims=1)

    along = tape.emit("Mul", [normal, mean(tape.emit("Mul", [scaled, normal]))])
    across = tape.emit("Sub", [tape.emit("Sub", [scaled, mean(scaled)]), along])
    return tape.emit("Mul", [across, inverse_deviation])


def softmax(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = Y (dY - sum(dY Y))."""
    shape = tape.graph.shape(node.output[0])
    axis = tape.integers([attributes(node).get("axis", -1) % len(shape)])
    output, tensor = node.output[0], tape.dense(cotangent, shape)
    total = tape.emit("ReduceSum", [tape.emit("Mul", [tensor, output]), axis], keepdims=1)
    return [Cotangent(tape.emit("Mul", [output, tape.emit("Sub", [tensor, total])]))]


def log_softmax(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY - exp(Y) sum(dY)."""
    shape = tape.graph.shape(node.output[0])
    axis = tape.integers([attributes(node).get("axis", -1) % len(shape)])
    tensor = tape.dense(cotangent, shape)
    total = tape.emit("ReduceSum", [tensor, axis], keepdims=1)
    return [Cotangent(tape.emit("Sub", [tensor, tape.emit("Mul", [tape.emit("Exp", [node.output[0]]), total])]))]


def lp_normalization(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = X / |X| along one axis, the length being L2 or L1: dX = (dY - s sum(dY Y)) / |X| with s = Y or sign(X)."""
    shape, options = tape.graph.shape(node.output[0]), attributes(node)
    axis = tape.integers([options.get("axis", -1) % len(shape)])
    order = options.get("p", 2)
    length = tape.emit(f"ReduceL{order}", [node.input[0], axis], keepdims=1)
    tensor = tape.dense(cotangent, shape)
    total = tape.emit("ReduceSum", [tape.emit("Mul", [tensor, node.output[0]]), axis], keepdims=1)
    direction = node.output[0] if order == 2 else tape.emit("Sign", [node.input[0]])
    across = tape.emit("Sub", [tensor, tape.emit("Mul", [direction, total])])
    return [Cotangent(tape.emit("Div", [across, tape.emit("Max", [length, tape.constant(LEAST)])]))]


def local_response_normalization(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = X d^-beta with d = bias + (alpha / size) sum of X^2 over neighbouring channels (Krizhevsky et al. 2012):
    dX = dY d^-beta - 2 (alpha beta / size) X sum of dY X d^(-beta - 1) over the channels that X is a neighbour of.

    The sums over channels are 1x1 convolutions with a band of ones.
    """
    shape, options = tape.graph.shape(node.output[0]), attributes(node)
    channels, size = shape[1], options["size"]
    if channels is None or not 3 <= len(shape) <= 5:
        raise UnsupportedOperator("LRN over other than one to three fixed axes", where=node_label(node))
    alpha, beta, bias = options.get("alpha", 1e-4), options.get("beta", 0.75), options.get("bias", 1.0)
    distance = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    band = ((distance >= -((size - 1) // 2)) & (distance <= size // 2)).astype(np.float32)

    def summed(tensor: str, weights: np.ndarray) -> str:
        return tape.emit("Conv", [tensor, tape.constant(weights.reshape(*weights.shape, *[1] * (len(shape) - 2)))])

    x = node.input[0]
    squares = tape.scaled(summed(tape.emit("Mul", [x, x]), band), alpha / size)
    base = tape.emit("Add", [squares, tape.constant(bias)])
    own = tape.emit("Mul", [tape.dense(cotangent, shape), tape.emit("Pow", [base, tape.constant(-beta)])])
    felt = tape.emit("Div", [tape.emit("Mul", [own, x]), base])
    others = tape.emit("Mul", [x, tape.scaled(summed(felt, band.T), 2 * alpha * beta / size)])
    return [Cotangent(tape.emit("Sub", [own, others]))]
