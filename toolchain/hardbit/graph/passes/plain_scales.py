"""Write scales in the one form that TensorRT reads: no axes for a whole tensor, axis 0 for output channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.graph.passes.base import Pass

__all__ = ["PlainScales"]


class PlainScales(Pass):
    """A scale of shape [1] becomes one of shape []: TensorRT takes the other for a scale per channel and runs the layer
    in float, silently. An axis counted from the end is counted from the beginning.
    """

    name = "plain_scales"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for node in _quantizers(graph):
            scale = graph.operand(node, 1)
            if scale is not None and scale.size == 1 and scale.ndim:
                yield f"the scale of '{node.name}' has an axis"
            if attribute(node, "axis", 0) < 0:  # type: ignore[operator]
                yield f"'{node.name}' counts its axis from the end"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for node in _quantizers(graph):
            scale, codes = graph.operand(node, 1), graph.operand(node, 0)
            if scale is not None and scale.size == 1:
                for index in (1, 2):
                    value = graph.operand(node, index)
                    if value is not None and value.ndim:
                        graph.set_input(
                            node, index, graph.add_constant(f"{node.input[index]}.plain", value.reshape(()))
                        )
                _set_axis(node, None)
            elif codes is not None:
                _set_axis(node, int(attribute(node, "axis", 1)) % codes.ndim)  # type: ignore[call-overload]
        return []


def _quantizers(graph: OnnxGraph) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def _set_axis(node: onnx.NodeProto, axis: int | None) -> None:
    others = [entry for entry in node.attribute if entry.name != "axis"]
    del node.attribute[:]
    node.attribute.extend([*others, *([] if axis is None else [helper.make_attribute("axis", axis)])])
