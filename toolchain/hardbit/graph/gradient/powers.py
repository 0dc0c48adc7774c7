"""Adjoints of elementary functions: Erf, Exp, Log, Sqrt, Reciprocal, Pow, Abs, Neg."""

from __future__ import annotations

import math

import onnx

from hardbit.graph.gradient.elementwise import operand_share
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["absolute", "erf", "exp", "log", "negate", "power", "reciprocal", "square_root"]


def erf(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY 2 / sqrt(pi) exp(-X^2)."""
    square = tape.emit("Mul", [node.input[0], node.input[0]])
    bell = tape.emit("Exp", [tape.emit("Neg", [square])])
    slope = tape.emit("Mul", [bell, tape.constant(2 / math.sqrt(math.pi))])
    return [tape.times(cotangent, node, slope)]


def exp(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return [tape.times(cotangent, node, node.output[0])]


def log(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    return [Cotangent(tape.emit("Div", [tensor, node.input[0]]))]


def square_root(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = dY / (2 Y): infinite at 0, as the function is steep there."""
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    return [Cotangent(tape.emit("Div", [tape.scaled(tensor, 0.5), node.output[0]]))]


def reciprocal(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """dX = -dY Y^2."""
    slope = tape.emit("Neg", [tape.emit("Mul", [node.output[0], node.output[0]])])
    return [tape.times(cotangent, node, slope)]


def power(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = A^B: dA = dY B A^(B - 1), dB = dY Y ln A."""
    base, exponent = node.input
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    shares: list[Cotangent | None] = [None, None]
    if base in tape.active:
        value = tape.graph.constants.get(exponent)
        if value is None:
            lower = tape.emit("Pow", [base, tape.emit("Sub", [exponent, tape.constant(1.0)])])
            slope = tape.emit("Mul", [lower, exponent])
        elif value.size == 1 and float(value.reshape(-1)[0]) == 2:
            slope = tape.scaled(base, 2.0)
        else:
            slope = tape.emit("Mul", [tape.emit("Pow", [base, tape.constant(value - 1)]), tape.constant(value)])
        shares[0] = operand_share(tape, node, Cotangent(tape.emit("Mul", [tensor, slope])), 0)
    if exponent in tape.active:
        slope = tape.emit("Mul", [node.output[0], tape.emit("Log", [base])])
        shares[1] = operand_share(tape, node, Cotangent(tape.emit("Mul", [tensor, slope])), 1)
    return shares


def absolute(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return [tape.times(cotangent, node, tape.emit("Sign", [node.input[0]]))]


def negate(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return [Cotangent(tape.emit("Neg", [cotangent.tensor]), cotangent.masks, cotangent.spread)]
