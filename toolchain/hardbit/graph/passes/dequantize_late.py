"""Move what only picks or rearranges values from dequantized numbers onto the codes: DequantizeLinear comes after."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass

__all__ = ["DequantizeLate"]

MOVABLE = ("Flatten", "MaxPool", "Reshape", "Transpose")


class DequantizeLate(Pass):
    """x -> DequantizeLinear -> Flatten becomes x -> Flatten -> DequantizeLinear, so that the next Gemm finds its codes.

    Flatten, Reshape and Transpose only rearrange; the maximum commutes with DequantizeLinear because a scale is
    positive and the map from code to number therefore monotone.
    """

    name = "dequantize_late"

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        for node, dequantize in _candidates(graph):
            scale = graph.operand(dequantize, 1)
            if scale is None or not scale.item() > 0:
                yield f"the scale of '{dequantize.name}', before '{node.name}', is not a positive constant"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for node, dequantize in _candidates(graph):
            yield f"'{node.name}' still reads the numbers of '{dequantize.name}'"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        while candidate := next(iter(_candidates(graph)), None):
            _swap(graph, *candidate)
        return []


def _candidates(graph: OnnxGraph) -> Iterable[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Pairs (movable node, the per-tensor DequantizeLinear of activations that it reads)."""
    for node in graph.nodes:
        if node.op_type in MOVABLE and len([name for name in node.output if name]) == 1:
            dequantize = graph.producer(node.input[0])
            if dequantize is not None and dequantize.op_type == "DequantizeLinear" and _per_tensor(graph, dequantize):
                yield node, dequantize


def _per_tensor(graph: OnnxGraph, dequantize: onnx.NodeProto) -> bool:
    scale = graph.operand(dequantize, 1)
    return not graph.is_constant(dequantize.input[0]) and (scale is None or scale.size == 1)


def _swap(graph: OnnxGraph, node: onnx.NodeProto, dequantize: onnx.NodeProto) -> None:
    """Let `node` read the codes and a copy of `dequantize` follow it; the original goes once nobody reads it."""
    numbers = node.output[0]
    follower = onnx.NodeProto()
    follower.CopyFrom(dequantize)
    follower.name = graph.unused_node_name(f"{node.name}.dequantize")
    follower.input[0] = graph.unused_name(f"{node.name}.codes")
    follower.output[0] = numbers
    graph.set_input(node, 0, dequantize.input[0])
    graph.set_output(node, follower.input[0])
    graph.insert_after(node, follower)
    if not graph.consumers(dequantize.output[0]) and not graph.is_output(dequantize.output[0]):
        graph.remove(dequantize)
