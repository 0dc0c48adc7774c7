"""Rewrite uint8 activations as int8 with zero point 0, the only codes that TensorRT takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass

__all__ = ["SignedActivations"]

_MIDDLE = 128
_INT8_MAX = 127


class SignedActivations(Pass):
    """Codes of zero point 0 that a Clip keeps within [0, 127] are the same in int8; codes of zero point 128 are lower
    by 128 there, and saturate where uint8 did.
    """

    name = "signed_activations"

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        for quantize, zero_point in _unsigned(graph):
            readers = graph.consumers(quantize.output[0])
            if zero_point not in (0, _MIDDLE):
                yield f"the zero point of '{quantize.name}' is {zero_point}, neither 0 nor {_MIDDLE}"
            if graph.is_output(quantize.output[0]):
                yield f"the codes of '{quantize.name}' are an output"
            if zero_point == 0 and not all(_ends_by_127(graph, reader) for reader in readers):
                yield f"the codes of '{quantize.name}' pass {_INT8_MAX}"
            for reader in readers:
                if reader.op_type not in ("Clip", "DequantizeLinear"):
                    yield f"the codes of '{quantize.name}' are read by '{reader.name}' ({reader.op_type})"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for quantize, _ in _unsigned(graph):
            yield f"'{quantize.name}' still writes uint8"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for quantize, offset in list(_unsigned(graph)):
            readers = graph.consumers(quantize.output[0])
            clips = [reader for reader in readers if reader.op_type == "Clip"]
            ends = [node for clip in clips for node in graph.consumers(clip.output[0])]
            for node in (quantize, *readers, *ends):
                if node.op_type != "Clip":
                    graph.set_input(node, 2, graph.add_constant(f"{node.name}.zero_point.signed", np.int8(0)))
            for clip in clips:
                for index, name, absent in ((1, "low", 0), (2, "high", 255)):
                    given = graph.operand(clip, index)
                    bound = np.int8((absent if given is None else int(given.item())) - offset)
                    graph.set_input(clip, index, graph.add_constant(f"{clip.name}.{name}.signed", bound))
        return []


def _unsigned(graph: OnnxGraph) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Every quantizer of activations that writes uint8, with its zero point."""
    for node in graph.nodes:
        zero_point = graph.operand(node, 2) if node.op_type == "QuantizeLinear" else None
        if zero_point is not None and zero_point.dtype == np.uint8:
            yield node, int(zero_point.item())


def _ends_by_127(graph: OnnxGraph, reader: onnx.NodeProto) -> bool:
    high = graph.operand(reader, 2) if reader.op_type == "Clip" else None
    return high is not None and high.item() <= _INT8_MAX
