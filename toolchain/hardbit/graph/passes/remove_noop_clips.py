"""Remove integer Clips whose bounds are those of the type."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass

__all__ = ["RemoveNoopClips"]


class RemoveNoopClips(Pass):
    """A Clip of uint8 codes to [0, 255] or of int8 codes to [-128, 127] costs a pass over memory and does nothing."""

    name = "remove_noop_clips"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for node in graph.nodes:
            if _is_noop(graph, node):
                yield f"Clip '{node.name}' does nothing"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for node in list(graph.nodes):
            if _is_noop(graph, node):
                graph.replace_uses(node.output[0], node.input[0])
                graph.remove(node)
        return []


def _is_noop(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    if node.op_type != "Clip" or graph.is_output(node.output[0]):
        return False
    low, high = graph.operand(node, 1), graph.operand(node, 2)
    if low is None or high is None or not np.issubdtype(low.dtype, np.integer):
        return False
    limits = np.iinfo(low.dtype)
    return bool(low.item() <= limits.min and high.item() >= limits.max)
