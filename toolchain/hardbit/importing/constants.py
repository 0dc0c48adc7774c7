"""What follows from constants alone becomes a constant: Constant nodes, and the arithmetic on them."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.importing.probing import ProbeError, blamed_node, tensors_of
from hardbit.importing.quantized_sources import is_quantizing
from hardbit_deploy.errors import HardbitError

__all__ = ["fold_constants"]

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform")


def fold_constants(graph: OnnxGraph) -> int:
    """Replace, in place, every tensor that does not depend on the image by its value; returns how many nodes went.

    Quantizers of constants stay: their codes are what a quantized network is about. So do random numbers. Raises
    HardbitError naming the node that cannot be evaluated.
    """
    known: set[str] = set()
    folded: list[onnx.NodeProto] = []
    for node in graph.nodes:
        constant = all(not name or name in known or graph.is_constant(name) for name in node.input)
        if constant and not is_quantizing(node) and not node.op_type.startswith(_RANDOM):
            known.update(node.output)
            folded.append(node)
    if not folded:
        return 0
    values = _evaluated(graph, folded)
    for node in folded:
        for name in node.output:
            if name and not graph.is_output(name) and graph.consumers(name):
                graph.replace_uses(name, graph.add_constant(f"{name}.value", values[name]))
        if not any(graph.is_output(name) for name in node.output):
            graph.remove(node)
    graph.prune()
    return len(folded)


def _evaluated(graph: OnnxGraph, nodes: list[onnx.NodeProto]) -> dict[str, NDArray[Any]]:
    alone = graph.to_model()
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in alone.graph.initializer if tensor.name in read]
    alone.graph.CopyFrom(onnx.helper.make_graph(nodes, "constants", [], [], kept))
    try:
        return dict(tensors_of(alone, {}))
    except ProbeError as error:
        raise HardbitError(
            f"this arithmetic on constants cannot be evaluated: {error}",
            where=blamed_node(error) or nodes[0].name,
            remedy="export the network with constants folded",
        ) from None
