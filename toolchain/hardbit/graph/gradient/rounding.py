"""Straight-through adjoints of the operators whose true derivative is 0: Sign, Round, Floor, Ceil.

A true gradient of zeros would make every binary network look robust. The derivative of rounding is taken as 1. That of
Sign is a choice of `Tape.straight_through`: "clipped" is 1 where |x| <= 1 and 0 elsewhere (Hubara et al. 2016,
arXiv:1602.02830, the `ste_sign` of Larq); "identity" is 1 everywhere, for networks whose sums before a Sign are far
from 1 throughout, where the clipped choice would leave nothing.
"""

from __future__ import annotations

import onnx

from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["round_", "sign"]


def sign(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    if tape.straight_through == "identity" or breaks_ties(tape, node):
        return [cotangent]
    inside = tape.emit("LessOrEqual", [tape.emit("Abs", [node.input[0]]), tape.constant(1.0)])
    return [cotangent.masked(inside)]


def breaks_ties(tape: Tape, node: onnx.NodeProto) -> bool:
    """Whether a Sign only takes the 0 of another one to a side, as Sign(Sign(x) + 0.1): the choice is made there."""
    shift = tape.graph.producers.get(node.input[0])
    if shift is None or shift.op_type not in ("Add", "Sub"):
        return False
    makers = [tape.graph.producers.get(name) for name in shift.input]
    offsets = [tape.graph.constants.get(name) for name in shift.input]
    return any(
        maker is not None and maker.op_type == "Sign" and offset is not None and bool((abs(offset) < 1).all())
        for maker, offset in zip(makers, reversed(offsets), strict=True)
    )


def round_(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    return [cotangent]
