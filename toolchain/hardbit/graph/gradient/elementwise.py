"""Adjoints of Identity, Dropout, Cast, Relu, float Clip, Where, and of sums, products, quotients and extremes.

At a kink the derivative is the one that torch.autograd takes: 0 for Relu at 0, 1 for clamp at its bounds, equal shares
for operands of Min and Max that are equal.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.intervals import EVERYTHING
from hardbit.graph.gradient.primal import Shape, attributes, input_name
from hardbit.graph.gradient.quantization import clipped_codes, codes_carry_relu
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = [
    "add",
    "cast",
    "clip",
    "divide",
    "dropout",
    "extreme",
    "identity",
    "mean",
    "multiply",
    "operand_share",
    "relu",
    "subtract",
    "sum_",
    "sum_to_shape",
    "where",
]

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def identity(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return [cotangent]


def dropout(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """The identity, which it is unless its third input says that the network trains."""
    training = tape.graph.constant(node, 2)
    if input_name(node, 2) and (training is None or bool(training)):
        raise UnsupportedOperator("Dropout in training mode", where=node_label(node))
    return [cotangent]


def cast(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Straight through; the cotangent takes the type of the input where both are floats."""
    source, target = tape.graph.dtypes.get(node.input[0], TensorProto.FLOAT), attributes(node)["to"]
    if source not in FLOATS or target not in FLOATS:
        raise UnsupportedOperator(
            "Cast is differentiable between float types only",
            where=node_label(node),
            remedy="quantize with QuantizeLinear, whose straight-through derivative is defined",
        )
    if source == target:
        return [cotangent]
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    return [Cotangent(tape.emit("Cast", [tensor], to=source))]


def relu(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Passes where the output is not 0: Cast to bool takes half the time of Greater in ONNX Runtime."""
    if codes_carry_relu(tape, node):
        return [cotangent]
    if tape.forms == "tensorrt":
        return [cotangent.masked(tape.emit("Greater", [node.output[0], tape.constant(0.0)]))]
    return [cotangent.masked(tape.emit("Cast", [node.output[0]], to=TensorProto.BOOL))]


def clip(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Passes where low <= x <= high, as torch.clamp does; a bound that no value passes needs no mask."""
    if tape.graph.dtypes.get(node.input[0], TensorProto.FLOAT) not in FLOATS:
        return clipped_codes(tape, node, cotangent)
    tape.require_constant(node, 1, "lower bound")
    tape.require_constant(node, 2, "upper bound")
    reach = tape.intervals.get(node.input[0], EVERYTHING)
    for position, comparison, sign in ((1, "GreaterOrEqual", -1), (2, "LessOrEqual", 1)):
        if position >= len(node.input) or not node.input[position]:
            continue
        bound = tape.graph.constant(node, position)
        if bound is None or sign * reach[position - 1] > sign * float(bound):
            cotangent = cotangent.masked(tape.emit(comparison, [node.input[0], node.input[position]]))
    return [cotangent]


def add(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    shape = tape.graph.shape(node.output[0])
    if cotangent.masks and any(len(tape.graph.consumers[name]) > 1 for name in node.input if name in tape.active):
        # That operand's cotangent will be summed with others and so be made dense: do it once, for both operands.
        cotangent = Cotangent(tape.dense(cotangent, shape))
    return [operand_share(tape, node, cotangent, position) for position in range(2)]


def sum_(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return [operand_share(tape, node, cotangent, position) for position in range(len(node.input))]


def mean(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    return sum_(tape, node, Cotangent(tape.scaled(tensor, 1 / len(node.input))))


def subtract(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    left = operand_share(tape, node, cotangent, 0)
    right = operand_share(tape, node, cotangent, 1)
    if right is not None:
        right = Cotangent(tape.emit("Neg", [right.tensor]), right.masks, right.spread)
    return [left, right]


def multiply(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    shape = tape.graph.shape(node.output[0])
    shares: list[Cotangent | None] = []
    for position in range(2):
        if node.input[position] not in tape.active:
            shares.append(None)
            continue
        other = node.input[1 - position]
        product = Cotangent(tape.emit("Mul", [tape.dense(cotangent, shape), other]))
        shares.append(operand_share(tape, node, product, position))
    return shares


def divide(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = A / B: dA = dY / B, dB = -Y dY / B."""
    quotient = tape.emit("Div", [tape.dense(cotangent, tape.graph.shape(node.output[0])), node.input[1]])
    left = operand_share(tape, node, Cotangent(quotient), 0)
    if node.input[1] not in tape.active:
        return [left, None]
    product = tape.emit("Neg", [tape.emit("Mul", [quotient, node.output[0]])])
    return [left, operand_share(tape, node, Cotangent(product), 1)]


def extreme(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Min and Max of any number of operands: those that are equal to the result share its gradient."""
    output = node.output[0]
    winners = [tape.indicator((tape.emit("Equal", [name, output]),)) for name in node.input]
    if len(winners) == 1:
        return [cotangent]
    tensor = tape.dense(cotangent, tape.graph.shape(output))
    tensor = tape.emit("Div", [tensor, tape.emit("Sum", winners)])
    return [
        operand_share(tape, node, Cotangent(tape.emit("Mul", [tensor, winner])), position)
        if node.input[position] in tape.active
        else None
        for position, winner in enumerate(winners)
    ]


def where(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Each branch takes the gradient where it was taken; the condition has none."""
    shape, condition = tape.graph.shape(node.output[0]), node.input[0]
    tensor = tape.dense(cotangent, shape)
    shares: list[Cotangent | None] = [None]
    for position, negated in ((1, False), (2, True)):
        if node.input[position] not in tape.active:
            shares.append(None)
            continue
        mask = tape.emit("Not", [condition]) if negated else condition
        product = tape.emit("Mul", [tensor, tape.indicator((mask,))])
        shares.append(operand_share(tape, node, Cotangent(product), position))
    return shares


def operand_share(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent, position: int) -> Cotangent | None:
    """The cotangent of the output, summed over the axes along which this operand was broadcast."""
    name = node.input[position]
    if name not in tape.active:
        return None
    source, target = tape.graph.shape(node.output[0]), tape.graph.shape(name)
    if source == target:
        return cotangent
    return Cotangent(sum_to_shape(tape, tape.dense(cotangent, source), source, target))


def sum_to_shape(tape: Tape, tensor: str, source: Shape, target: Shape) -> str:
    missing = len(source) - len(target)
    axes = [
        axis for axis in range(len(source)) if axis < missing or (target[axis - missing] == 1 and source[axis] != 1)
    ]
    if not axes:
        return tensor
    summed = tape.emit("ReduceSum", [tensor, tape.integers(axes)], keepdims=1)
    return tape.reshape(summed, target) if missing else summed
