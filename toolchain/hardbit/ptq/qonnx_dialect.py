"""QONNX (Pappalardo et al. 2022, arXiv:2206.07527) rewritten to Q/DQ: Quant, BipolarQuant and Trunc.

Quant of a constant becomes codes; Quant of an activation becomes QuantizeLinear, integer Clip, DequantizeLinear.
QONNX adds the zero point before it rounds, QuantizeLinear after: with an odd zero point a number right between two
codes may get the other one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute, mark_bits, mark_float
from hardbit_deploy.errors import HardbitError

__all__ = ["QONNX_DOMAINS", "qonnx_as_qdq"]

QONNX_DOMAINS = frozenset(["qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"])
_WIDEST = 8
_INT32 = 2.0**31
_ROUNDINGS = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil, "DOWN": np.trunc, "ROUND_TO_ZERO": np.trunc}
_LIFT = "a bit with a sign: turned and cut at 0, and turned back"
_TRUNCATION = "half a code lower, so that rounding to the nearest code is rounding down"


def qonnx_as_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without QONNX operators. Raises HardbitError naming the node that has no such form: more than 8
    bits, a scale for each channel of an activation or one computed at run time, an unusual rounding."""
    graph = OnnxGraph(model)
    rules = {"Quant": _quant, "BipolarQuant": _bipolar, "Trunc": _truncate}
    for node in list(graph.nodes):
        if node.domain in QONNX_DOMAINS:
            if node.op_type not in rules:
                raise HardbitError(
                    f"the QONNX operator {node.op_type} has no Q/DQ form",
                    node.name,
                    f"known: {', '.join(sorted(rules))}",
                )
            rules[node.op_type](graph, node)
    graph.prune()
    rewritten = graph.to_model()
    kept = [helper.make_opsetid(e.domain, e.version) for e in rewritten.opset_import if e.domain not in QONNX_DOMAINS]
    del rewritten.opset_import[:]
    rewritten.opset_import.extend(kept)
    return rewritten


def _constant(graph: OnnxGraph, node: onnx.NodeProto, index: int, what: str) -> NDArray[Any]:
    value = graph.operand(node, index)
    if value is None:
        raise HardbitError(f"its {what} is computed at run time", node.name, "freeze it to a constant before exporting")
    return value.astype(np.float32)


def _one(node: onnx.NodeProto, value: NDArray[Any], what: str) -> float:
    if value.size != 1:
        raise HardbitError(f"an activation has a {what} for each channel", node.name, f"use one {what} for the tensor")
    return float(value.reshape(-1)[0])


def _limits(signed: bool, narrow: bool, bits: float) -> tuple[float, float]:
    if signed:
        return -(2.0 ** (bits - 1)) + narrow, 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1 - narrow


def _rounding(node: onnx.NodeProto) -> str:
    mode: Any = attribute(node, "rounding_mode", b"ROUND" if node.op_type == "Quant" else b"FLOOR")
    return (mode.decode() if isinstance(mode, bytes) else str(mode)).upper()


def _quant(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    scale, zero_point = _constant(graph, node, 1, "scale"), _constant(graph, node, 2, "zero point")
    bits = _one(node, _constant(graph, node, 3, "width"), "width")
    signed, narrow = bool(attribute(node, "signed", 1)), bool(attribute(node, "narrow", 0))
    values, mode = graph.operand(node, 0), _rounding(node)
    low, high = _limits(signed, narrow, bits)
    if values is not None:
        if mode not in _ROUNDINGS:
            raise HardbitError(f"the rounding {mode} is not known", node.name, f"known: {', '.join(_ROUNDINGS)}")
        codes = _ROUNDINGS[mode](np.clip(values.astype(np.float32) / scale + zero_point, low, high))
        _write_constant(graph, node, codes - zero_point, scale, math.ceil(bits))
        return
    if mode != "ROUND":
        raise HardbitError(f"activations are rounded by {mode}", node.name, "round to the nearest code: ROUND")
    zero = _one(node, zero_point, "zero point")
    if not zero.is_integer() or not low <= zero <= high:
        raise HardbitError(f"the zero point {zero:g} is no code", node.name)
    _write_quantizer(graph, node, node.input[0], _one(node, scale, "scale"), (low, high), signed, bits, int(zero))


def _write_constant(
    graph: OnnxGraph, node: onnx.NodeProto, codes: NDArray[Any], scale: NDArray[np.float32], bits: int
) -> None:
    """Codes less their zero point behind a DequantizeLinear; what no integer type holds is kept as numbers."""
    axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
    kind = np.int32 if codes.ndim <= 1 or bits > _WIDEST else np.int8
    span = float(np.abs(codes).max(initial=0))
    if len(axes) > 1 or (axes and scale.ndim != codes.ndim) or span >= (_INT32 if kind == np.int32 else 129):
        numbers = graph.add_constant(f"{node.output[0]}.values", (codes * scale).astype(np.float32))
        graph.replace_uses(node.output[0], numbers)
        graph.remove(node)
        return
    factor = scale.reshape(-1) if axes else scale.reshape(())
    inputs = [
        graph.add_constant(f"{node.name}.codes", np.clip(codes, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)),
        graph.add_constant(f"{node.name}.scale", factor),
        graph.add_constant(f"{node.name}.zero_point", np.zeros(factor.shape, kind)),
    ]
    along = {"axis": axes[0]} if axes else {}
    dequantize = helper.make_node("DequantizeLinear", inputs, node.output[:1], name=node.name, **along)
    mark_bits(dequantize, 32 if kind == np.int32 else max(bits, 1))
    graph.insert_before(node, dequantize)
    graph.remove(node)


def _write_quantizer(
    graph: OnnxGraph,
    node: onnx.NodeProto,
    source: str,
    scale: float,
    limits: tuple[float, float],
    signed: bool,
    bits: float,
    zero: int = 0,
) -> None:
    """QuantizeLinear, integer Clip, DequantizeLinear of `source` in place of `node`."""
    if bits > _WIDEST:
        raise HardbitError(f"activations of {bits:g} bits", node.name, "engines compute in 8 bits and less")
    kind = np.int8 if signed else np.uint8
    parameters = [
        graph.add_constant(f"{node.name}.scale", np.float32(scale)),
        graph.add_constant(f"{node.name}.zero_point", kind(zero)),
    ]
    low, high = math.ceil(limits[0]), math.floor(limits[1])
    bounds = [graph.add_constant(f"{node.name}.{end}", kind(value)) for end, value in (("low", low), ("high", high))]
    codes, clipped = graph.unused_name(f"{node.name}.codes"), graph.unused_name(f"{node.name}.clipped")
    width = max(math.ceil(bits), 1)
    for operator, inputs, target in (
        ("QuantizeLinear", [source, *parameters], codes),
        ("Clip", [codes, *bounds], clipped),
        ("DequantizeLinear", [clipped, *parameters], node.output[0]),
    ):
        name = graph.unused_node_name(f"{node.name}.{operator.removesuffix('Linear').lower()}")
        made = helper.make_node(operator, inputs, [target], name=name)
        mark_bits(made, None if operator == "Clip" else width)
        graph.insert_before(node, made)
    graph.remove(node)


def _bipolar(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """x >= 0 ? scale : -scale. (scale - x) / (2 scale) lies on the border of an unsigned bit where x is 0, and rounding
    half to even takes it to 0; so scale - 2 scale bit is the result. A number below 2^-24 of the scale counts as 0."""
    scale, values = _constant(graph, node, 1, "scale"), graph.operand(node, 0)
    if values is not None:
        codes = np.where(values >= 0, 1, -1)
        _write_constant(graph, node, codes, scale, 1)
        return
    size = np.float32(_one(node, scale, "scale"))
    step = graph.add_constant(f"{node.name}.step", size)
    turned = _float_node(graph, node, "Sub", [step, node.input[0]], "turned", _LIFT)
    parameters = [
        graph.add_constant(f"{node.name}.bit.scale", np.float32(2 * size)),
        graph.add_constant(f"{node.name}.bit.zero_point", np.uint8(0)),
    ]
    bounds = [graph.add_constant(f"{node.name}.bit.{end}", np.uint8(value)) for end, value in (("low", 0), ("high", 1))]
    tensor = turned
    for operator, extra in (("QuantizeLinear", parameters), ("Clip", bounds), ("DequantizeLinear", parameters)):
        word = f"bit.{operator.removesuffix('Linear').lower()}"
        target = graph.unused_name(f"{node.name}.{word}.out")
        made = helper.make_node(
            operator, [tensor, *extra], [target], name=graph.unused_node_name(f"{node.name}.{word}")
        )
        mark_bits(made, None if operator == "Clip" else 1)
        graph.insert_before(node, made)
        tensor = target
    back = _float_node(graph, node, "Sub", [step, tensor], "back", _LIFT)
    _write_quantizer(graph, node, back, float(size), (-1, 1), True, 1)


def _float_node(
    graph: OnnxGraph, node: onnx.NodeProto, operator: str, inputs: list[str], word: str, reason: str
) -> str:
    target = graph.unused_name(f"{node.name}.{word}.out")
    made = helper.make_node(operator, inputs, [target], name=graph.unused_node_name(f"{node.name}.{word}"))
    mark_float(made, reason)
    graph.insert_before(node, made)
    return target


def _truncate(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """Whole numbers n of `scale` divided by a power of two t and rounded down: floor(n / t) is what the number
    n / t - 1/2 + 1/(2t) rounds to.

    Six inputs name the scale of the result; five (the older operator) name its width, and keep the scale.
    """
    scale = _one(node, _constant(graph, node, 1, "scale"), "scale")
    if np.any(_constant(graph, node, 2, "zero point")):
        raise HardbitError("it has a zero point other than 0", node.name, "truncate codes with zero point 0")
    width = _one(node, _constant(graph, node, 3, "input width"), "width")
    newer = len(node.input) > 5
    bits = _one(node, _constant(graph, node, 5 if newer else 4, "output width"), "width")
    ratio = _one(node, _constant(graph, node, 4, "output scale"), "scale") / scale if newer else 2.0 ** (width - bits)
    divisor = 2.0 ** round(math.log2(ratio))
    signed = bool(attribute(node, "signed", int(_reads_signed(graph, node))))
    mode, source = _rounding(node), node.input[0]
    if mode not in ("FLOOR", "ROUND") and not (mode in ("DOWN", "ROUND_TO_ZERO") and not signed):
        raise HardbitError(f"it rounds by {mode}", node.name, "round down (FLOOR) or to the nearest code (ROUND)")
    if mode != "ROUND" and divisor > 1:
        offset = graph.add_constant(f"{node.name}.offset", np.float32(-scale * (divisor - 1) / 2))
        source = _float_node(graph, node, "Add", [source, offset], "lowered", _TRUNCATION)
    if not newer:
        factor = graph.add_constant(f"{node.name}.factor", np.float32(1 / divisor))
        source = _float_node(graph, node, "Mul", [source, factor], "divided", "a division by a power of two")
    limits = _limits(signed, bool(attribute(node, "narrow", 0)), bits)
    _write_quantizer(graph, node, source, scale * divisor if newer else scale, limits, signed, bits)


def _reads_signed(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    """Whether the codes that are averaged and truncated had a sign, as the quantizer above them says."""
    producer: onnx.NodeProto | None = graph.producer(node.input[0])
    while producer is not None and producer.op_type not in ("QuantizeLinear", "Quant"):
        producer = graph.producer(producer.input[0])
    if producer is None or producer.op_type == "Quant":
        return producer is None or bool(attribute(producer, "signed", 1))
    zero_point = graph.operand(producer, 2)
    return zero_point is not None and zero_point.dtype == np.int8
