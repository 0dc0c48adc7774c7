"""Clip numbers before they are quantized, instead of codes after: TensorRT's Clip is one of floats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, mark_float
from hardbit.graph.passes.base import Pass
from hardbit.graph.quantized_layers import VALUE_MOVING

__all__ = ["FloatClips"]

_AVERAGES = ("AveragePool", "GlobalAveragePool")
_INT8 = np.iinfo(np.int8)


class FloatClips(Pass):
    """QuantizeLinear, then a Clip of int8 codes to [low, high], becomes a Clip to [low * scale, high * scale] and then
    QuantizeLinear: rounding is monotone, and the bounds themselves are rounded to the codes that they came from.

    A bound that nothing can pass is left out: the type's own, and 0 where no number is negative. What is left after a
    Relu is one Clip from 0, in the Relu's place, as in a ReLU6.
    """

    name = "float_clips"

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        for clip, quantize in _code_clips(graph):
            scale, zero_point = graph.operand(quantize, 1), graph.operand(quantize, 2)
            if scale is None or scale.size != 1 or not np.isfinite(scale * np.float32(_INT8.min)).all():
                yield f"the scale of '{quantize.name}' is not one constant"
            if zero_point is None or zero_point.dtype != np.int8 or zero_point.any():
                yield f"'{quantize.name}' does not write int8 with zero point 0"
            if any(name and not graph.is_constant(name) for name in clip.input[1:3]):
                yield f"the bounds of '{clip.name}' are not constant"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for clip, quantize in _code_clips(graph):
            yield f"'{clip.name}' still clips the codes of '{quantize.name}'"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for clip, quantize in list(_code_clips(graph)):
            if len(graph.consumers(quantize.output[0])) > 1:
                quantize = _copy_for(graph, clip, quantize)
            bounds = _bounds(graph, clip, quantize)
            graph.replace_uses(clip.output[0], quantize.output[0])
            graph.remove(clip)
            _write(graph, clip.name, quantize, *bounds)
        return []


def _code_clips(graph: OnnxGraph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    for node in graph.nodes:
        source = graph.producer(node.input[0]) if node.op_type == "Clip" else None
        if source is not None and source.op_type == "QuantizeLinear":
            yield node, source


def _copy_for(graph: OnnxGraph, clip: onnx.NodeProto, quantize: onnx.NodeProto) -> onnx.NodeProto:
    """A quantizer of the clip's own, where others read the codes unclipped or clipped otherwise."""
    copy = onnx.NodeProto()
    copy.CopyFrom(quantize)
    copy.name = graph.unused_node_name(f"{clip.name}.quantize")
    copy.output[0] = graph.unused_name(f"{clip.name}.codes")
    graph.insert_before(clip, copy)
    return copy


def _bounds(
    graph: OnnxGraph, clip: onnx.NodeProto, quantize: onnx.NodeProto
) -> tuple[np.float32 | None, np.float32 | None]:
    """What the numbers before `quantize` must not pass; None where they cannot."""
    scale, low, high = graph.operand(quantize, 1), graph.operand(clip, 1), graph.operand(clip, 2)
    factor = np.float32(1 if scale is None else scale.item())
    low_code = _INT8.min if low is None else int(low.item())
    high_code = _INT8.max if high is None else int(high.item())
    low_is_free = low_code == _INT8.min or (low_code <= 0 and _never_negative(graph, quantize.input[0]))
    return (
        None if low_is_free else np.float32(low_code) * factor,
        None if high_code == _INT8.max else np.float32(high_code) * factor,
    )


def _write(
    graph: OnnxGraph, name: str, quantize: onnx.NodeProto, low: np.float32 | None, high: np.float32 | None
) -> None:
    tensor, place = quantize.input[0], quantize
    relu = graph.producer(tensor)
    if high is not None and relu is not None and relu.op_type == "Relu" and len(graph.consumers(tensor)) == 1:
        tensor, place, low = relu.input[0], relu, np.float32(0) if low is None else low
    if low is None and high is None:
        return
    clipped = graph.unused_name(f"{name}.floats")
    if high is None and low == 0:
        node = helper.make_node("Relu", [tensor], [clipped], name=name)
    else:
        ends = ["" if v is None else graph.add_constant(f"{name}.{end}", v) for end, v in (("from", low), ("to", high))]
        node = helper.make_node("Clip", [tensor, *ends], [clipped], name=name)
        mark_float(node, "the range of codes, as numbers")
    graph.insert_before(place, node)
    graph.set_input(quantize, 0, clipped)


def _never_negative(graph: OnnxGraph, tensor: str) -> bool:
    """Whether `tensor` is rectified, or made of rectified numbers by averaging, adding, picking or rearranging."""
    node = graph.producer(tensor)
    if node is None:
        return False
    if node.op_type == "DequantizeLinear":
        return _codes_never_negative(graph, node)
    if node.op_type in (*VALUE_MOVING, *_AVERAGES):
        return _never_negative(graph, node.input[0])
    if node.op_type == "Clip":
        low = graph.operand(node, 1)
        return low is not None and bool(low.item() >= 0)
    if node.op_type == "Add":
        return all(_never_negative(graph, operand) for operand in node.input)
    return node.op_type == "Relu"


def _codes_never_negative(graph: OnnxGraph, dequantize: onnx.NodeProto) -> bool:
    zero_point, source = graph.operand(dequantize, 2), graph.producer(dequantize.input[0])
    if zero_point is None or zero_point.any() or source is None:
        return False
    low = graph.operand(source, 1) if source.op_type == "Clip" else None
    if low is not None and low.item() >= 0:
        return True
    return source.op_type == "QuantizeLinear" and _never_negative(graph, source.input[0])
