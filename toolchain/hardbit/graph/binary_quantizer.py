"""One bit with a sign in a canonical graph: -scale and +scale, in operators that every engine has.

QuantizeLinear has no codes -1 and +1 without a 0 between. So the number is raised by the scale, where 0 falls on the
border of an unsigned bit of twice the scale, and lowered again; the codes that follow hold what is there, -1 and +1
times the scale. The gradient rules of these operators give the straight-through derivative of a quantizer with two
levels (see `hardbit.quantize.binary`).

Boundary: whoever writes the layer before it has to know that this layer ends in floats.
"""

from __future__ import annotations

import numpy as np

from hardbit.graph.node_writer import NodeWriter

__all__ = ["EXACT_SUM", "SHIFT", "write_binary_quantizer"]

EXACT_SUM = "its exact sum decides between -1 and +1"
SHIFT = "a bit with a sign: raised, cut at 0, and lowered again"


def write_binary_quantizer(writer: NodeWriter, tensor: str, name: str, scale: float) -> str:
    """Write x > 0 ? scale : -scale of `tensor` under `name`; returns the tensor that holds the dequantized codes.

    `scale` is a power of two. Nodes: Add, QuantizeLinear, Clip, DequantizeLinear, Add, QuantizeLinear, Clip,
    DequantizeLinear.
    """
    raised = writer.node(
        "Add", [tensor, writer.constant(f"{name}.step", np.float32(scale))], f"{name}.raise", reason=SHIFT
    )
    bit = _quantize(writer, raised, f"{name}.bit", np.float32(2 * scale), np.uint8(0), np.uint8(1))
    lowered = writer.node(
        "Add", [bit, writer.constant(f"{name}.drop", np.float32(-scale))], f"{name}.lower", reason=SHIFT
    )
    return _quantize(writer, lowered, name, np.float32(scale), np.int8(-1), np.int8(1))


def _quantize(
    writer: NodeWriter,
    tensor: str,
    name: str,
    scale: np.float32,
    low: np.int8 | np.uint8,
    high: np.int8 | np.uint8,
) -> str:
    parameters = [writer.constant(f"{name}.scale", scale), writer.constant(f"{name}.zero_point", low.dtype.type(0))]
    bounds = [writer.constant(f"{name}.low", low), writer.constant(f"{name}.high", high)]
    codes = writer.node("QuantizeLinear", [tensor, *parameters], f"{name}.quantize", bits=1)
    clipped = writer.node("Clip", [codes, *bounds], f"{name}.clip")
    return writer.node("DequantizeLinear", [clipped, *parameters], f"{name}.dequantize", bits=1)
