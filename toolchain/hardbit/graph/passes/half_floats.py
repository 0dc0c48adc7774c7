"""Let what a graph computes in float be computed in float16."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from hardbit.graph.binary_quantizer import SHIFT
from hardbit.graph.onnx_graph import OnnxGraph, float_reason
from hardbit.graph.passes.base import Pass, ValuePreserving
from hardbit.graph.quantized_layers import VALUE_MOVING
from hardbit_deploy.errors import HardbitError

__all__ = ["HalfFloats"]

_FOLLOWING = (*VALUE_MOVING, "Relu")
_CHOOSING = frozenset({"ArgMax", "ArgMin", "Cast", "ConstantOfShape", "Shape", "TopK"})
"""Their outputs are not the floats that they read, or have a type of their own."""


class HalfFloats(Pass):
    """Every node that declares itself float, and what only moves or rectifies its result, reads and writes float16;
    a Cast stands where floats enter or leave such nodes.

    Sums of codes, their biases and what is added to them stay float32: eleven bits do not hold them. So do the two
    steps that cut a bit with a sign, which decide at 0 exactly.
    """

    name = "half_floats"
    value_preserving = ValuePreserving.UNLESS_REPORTED

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        for value in (*graph.inputs, *graph.outputs):
            if value.type.tensor_type.elem_type != TensorProto.FLOAT:
                yield f"'{value.name}' is not float32"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        nodes = _chosen(graph)
        names = {node.name for node in nodes}
        halves: dict[str, str] = {}
        for node in nodes:
            for index, tensor in enumerate(node.input):
                source = graph.producer(tensor)
                if source is None or source.name not in names:
                    graph.set_input(node, index, _half(graph, node, tensor, halves))
        for node in nodes:
            _leave(graph, node, names)
        if not nodes:
            return []
        listed = ", ".join(node.name for node in nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
        return [f"computed in float16, not in float32: {listed}"]


def _chosen(graph: OnnxGraph) -> list[onnx.NodeProto]:
    names: set[str] = set()
    found = []
    for node in graph.nodes:
        source = graph.producer(node.input[0]) if node.op_type in _FOLLOWING else None
        declared = float_reason(node) not in (None, SHIFT) and node.op_type not in _CHOOSING
        if (declared or (source is not None and source.name in names)) and len(node.output) == 1:
            names.add(node.name)
            found.append(node)
    return found


def _half(graph: OnnxGraph, node: onnx.NodeProto, tensor: str, halves: dict[str, str]) -> str:
    """The float16 of a float32 `tensor` that comes from elsewhere; whole numbers, such as axes and shapes, stay."""
    values = graph.constant(tensor)
    if not tensor or (values is not None and values.dtype != np.float32):
        return tensor
    if tensor not in halves and values is not None:
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if np.isinf(rounded).any() and not np.isinf(values).any():
            raise HardbitError(
                f"its constant '{tensor}' reaches {np.abs(values).max():.3g}, float16 ends at 65504",
                where=node.name,
                remedy="leave float16 out",
            )
        halves[tensor] = graph.add_constant(f"{tensor}.half", rounded)
    elif tensor not in halves:
        halves[tensor] = graph.unused_name(f"{tensor}.half")
        graph.insert_before(node, _cast(graph, tensor, halves[tensor], TensorProto.FLOAT16))
    return halves[tensor]


def _leave(graph: OnnxGraph, node: onnx.NodeProto, names: set[str]) -> None:
    """Cast the result of `node` back for readers that are not among `names`, and for the graph's output."""
    result = node.output[0]
    outside = [reader for reader in graph.consumers(result) if reader.name not in names]
    if graph.is_output(result):
        inside = [reader for reader in graph.consumers(result) if reader.name in names]
        half = graph.unused_name(f"{result}.half")
        graph.set_output(node, half)
        graph.replace_uses(result, half, inside)
        graph.insert_after(node, _cast(graph, half, result, TensorProto.FLOAT))
    elif outside:
        floats = graph.unused_name(f"{result}.float")
        graph.replace_uses(result, floats, outside)
        graph.insert_after(node, _cast(graph, result, floats, TensorProto.FLOAT))


def _cast(graph: OnnxGraph, source: str, target: str, kind: int) -> onnx.NodeProto:
    name = graph.unused_node_name(f"{source}.cast")
    return helper.make_node("Cast", [source], [target], name=name, to=kind)
