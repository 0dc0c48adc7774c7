"""Remove Identity nodes, so that every later step sees a node's true neighbours."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass

__all__ = ["RemoveIdentities"]


class RemoveIdentities(Pass):
    """An Identity that names a graph output goes too: the node before it then writes that output itself.

    One stays: where the graph output is a graph input, an initializer, or a second name of another graph output.
    """

    name = "remove_identities"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for node in graph.nodes:
            if node.op_type == "Identity" and not _must_stay(graph, node):
                yield f"Identity '{node.name}' is still there"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for node in list(graph.nodes):
            if node.op_type != "Identity" or _must_stay(graph, node):
                continue
            source, target = node.input[0], node.output[0]
            if graph.is_output(target):
                _rename(graph, source, target, node)
            else:
                graph.replace_uses(target, source)
            graph.remove(node)
        return []


def _must_stay(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    source, target = node.input[0], node.output[0]
    return graph.is_output(target) and (graph.producer(source) is None or graph.is_output(source))


def _rename(graph: OnnxGraph, source: str, target: str, identity: onnx.NodeProto) -> None:
    """Let the producer of `source` write `target`, and every other reader of `source` or `target` read that."""
    producer = graph.producer(source)
    if producer is None:
        return
    readers = [reader for reader in graph.consumers(source) if reader is not identity]
    for index, name in enumerate(producer.output):
        if name == source:
            producer.output[index] = target
    graph.replace_uses(source, target, readers)
