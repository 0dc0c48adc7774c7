"""Rewrite int8 activations as uint8, the only type that ONNX Runtime's CPU kernels keep in integers everywhere."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass
from hardbit.graph.quantized_layers import VALUE_MOVING

__all__ = ["UnsignedActivations"]

INT8_OFFSET = 128


class UnsignedActivations(Pass):
    """code + 128 with zero point + 128 stands for the same number, and int8 saturates where uint8 then does.

    After a Relu with zero point 0 half of the int8 range is empty, and ONNX Runtime drops a Relu before a
    QuantizeLinear only if the zero point is the least code: there the codes stay as they are, and saturation at 127
    becomes a Clip.
    """

    name = "unsigned_activations"

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        for quantize in _signed_quantizers(graph):
            if graph.is_output(quantize.output[0]):
                yield f"the int8 codes of '{quantize.name}' are an output"
            for reader in _code_readers(graph, quantize):
                if reader.op_type not in ("Clip", "DequantizeLinear", *VALUE_MOVING):
                    yield f"the int8 codes of '{quantize.name}' are read by '{reader.name}' ({reader.op_type})"
                elif reader.op_type == "DequantizeLinear" and graph.operand(reader, 2) is None:
                    yield f"'{reader.name}' has no constant zero point"
                elif reader.op_type == "Clip" and any(
                    name and not graph.is_constant(name) for name in reader.input[1:3]
                ):
                    yield f"the bounds of '{reader.name}' are not constant"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for quantize in _signed_quantizers(graph):
            yield f"'{quantize.name}' still writes int8"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for quantize in list(_signed_quantizers(graph)):
            source = graph.producer(quantize.input[0])
            zero_point = graph.operand(quantize, 2)
            never_negative = source is not None and source.op_type == "Relu" and not np.any(zero_point)
            offset = 0 if never_negative else INT8_OFFSET
            readers = list(_code_readers(graph, quantize))
            direct = graph.consumers(quantize.output[0])
            _shift_operand(graph, quantize, 2, offset)
            for reader in readers:
                if reader.op_type == "DequantizeLinear":
                    _shift_operand(graph, reader, 2, offset)
                elif reader.op_type == "Clip":
                    for index in (1, 2):
                        _shift_operand(graph, reader, index, offset)
            if never_negative and not all(_clips_above(graph, reader) for reader in direct):
                _clip_at_int8_max(graph, quantize)
        return []


def _signed_quantizers(graph: OnnxGraph) -> Iterable[onnx.NodeProto]:
    for node in graph.nodes:
        zero_point = graph.operand(node, 2) if node.op_type == "QuantizeLinear" else None
        if zero_point is not None and zero_point.dtype == np.int8 and not graph.is_constant(node.input[0]):
            yield node


def _code_readers(graph: OnnxGraph, quantize: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
    """Every node that reads the codes of `quantize`, followed through Clips and value-moving operators."""
    pending = graph.consumers(quantize.output[0])
    while pending:
        reader = pending.pop(0)
        yield reader
        if reader.op_type in ("Clip", *VALUE_MOVING):
            pending += graph.consumers(reader.output[0])


def _shift_operand(graph: OnnxGraph, node: onnx.NodeProto, index: int, offset: int) -> None:
    """Replace a constant int8 operand by uint8 values larger by `offset`; what stays negative cannot occur: 0."""
    values = graph.operand(node, index)
    if values is None:
        return
    shifted: NDArray[np.uint8] = np.maximum(values.astype(np.int16) + offset, 0).astype(np.uint8)
    graph.set_input(node, index, graph.add_constant(f"{node.input[index]}.unsigned", shifted))


def _clips_above(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    return node.op_type == "Clip" and graph.operand(node, 2) is not None


def _clip_at_int8_max(graph: OnnxGraph, quantize: onnx.NodeProto) -> None:
    codes = quantize.output[0]
    readers = graph.consumers(codes)
    bounds = [
        graph.add_constant(f"{quantize.name}.low", np.uint8(0)),
        graph.add_constant(f"{quantize.name}.high", np.uint8(127)),
    ]
    clipped = graph.unused_name(f"{quantize.name}.clipped")
    graph.replace_uses(codes, clipped, readers)
    name = graph.unused_node_name(f"{quantize.name}.clip")
    graph.insert_after(quantize, helper.make_node("Clip", [codes, *bounds], [clipped], name=name))
