"""Keep ONNX Runtime from quantizing float weights of its own accord."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, mark_float
from hardbit.graph.passes.base import Pass
from hardbit.graph.quantized_layers import LAYER_OPERATORS, dequantizer_of

__all__ = ["KeepFloatWeights"]


class KeepFloatWeights(Pass):
    """Where codes go into a layer with float weights, and codes come out, ONNX Runtime rounds the weights to int8 and
    runs another network. It looks for a DequantizeLinear right before the layer; a Clip between the two, to the range
    that codes have, changes no number and hides it.
    """

    name = "keep_float_weights"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for node, dequantize in _exposed(graph):
            yield f"the float weights of '{node.name}' follow '{dequantize.name}'"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for node, dequantize in list(_exposed(graph)):
            name = graph.unused_node_name(f"{node.name}.floats")
            bounds = [graph.add_constant(f"{name}.{end}", value) for end, value in _range(graph, dequantize)]
            tensor = graph.unused_name(f"{name}.out")
            clip = helper.make_node("Clip", [node.input[0], *bounds], [tensor], name=name)
            mark_float(clip, "codes as numbers, for a layer with float weights")
            graph.insert_before(node, clip)
            graph.set_input(node, 0, tensor)
        return []


def _exposed(graph: OnnxGraph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Layers with float weights that end in codes, or that need not to be made integer kernels (Gemm), and the
    DequantizeLinear whose values they read."""
    for node in graph.nodes:
        weights = graph.operand(node, 1) if node.op_type in LAYER_OPERATORS else None
        if weights is not None and weights.dtype == np.float32 and (node.op_type == "Gemm" or _quantized(graph, node)):
            dequantize = dequantizer_of(graph, node.input[0])
            if dequantize is not None:
                yield node, dequantize


def _quantized(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    """Whether what `node` gives, rectified or not, is quantized."""
    readers = graph.consumers(node.output[0])
    while readers and readers[0].op_type in ("Relu", "Clip"):
        readers = graph.consumers(readers[0].output[0])
    return any(reader.op_type == "QuantizeLinear" for reader in readers)


def _range(graph: OnnxGraph, dequantize: onnx.NodeProto) -> list[tuple[str, np.float32]]:
    """The least and the greatest number that the codes' type can stand for."""
    scale, zero_point = graph.operand(dequantize, 1), graph.operand(dequantize, 2)
    dtype = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
    factor = np.float32(1 if scale is None else scale.item())
    zero = 0 if zero_point is None else int(zero_point.item())
    limits = np.iinfo(dtype)
    return [("low", np.float32(limits.min - zero) * factor), ("high", np.float32(limits.max - zero) * factor)]
