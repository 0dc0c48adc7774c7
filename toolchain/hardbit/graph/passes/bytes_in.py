"""Let the graph read bytes: the first QuantizeLinear goes, its codes become the input."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass, ValuePreserving

__all__ = ["BytesIn"]


class BytesIn(Pass):
    """A camera delivers bytes b, and the network's input is (b - z) * s with the z and s of the first quantizer, whose
    codes are therefore b again: rounding b - z after two roundings of relative size 2^-24 gives b - z.
    """

    name = "bytes_in"
    value_preserving = ValuePreserving.ON_BYTES

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        if len(graph.inputs) != 1:
            yield f"the graph has {len(graph.inputs)} inputs"
            return
        image = graph.inputs[0]
        if image.type.tensor_type.elem_type != TensorProto.FLOAT:
            yield f"the input '{image.name}' is not float32"
        if graph.is_output(image.name):
            yield f"the input '{image.name}' is an output too"
        quantizers = graph.consumers(image.name)
        if len(quantizers) != 1:
            yield f"the input '{image.name}' is read by {len(quantizers)} nodes, not by one quantizer"
        for node in quantizers:
            yield from _problems(graph, node)

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for value in graph.inputs:
            if value.type.tensor_type.elem_type != TensorProto.UINT8:
                yield f"the input '{value.name}' is not uint8"
            for node in graph.consumers(value.name):
                if node.op_type == "QuantizeLinear":
                    yield f"'{node.name}' still quantizes the input"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        image = graph.inputs[0].name
        quantize = graph.consumers(image)[0]
        graph.replace_uses(quantize.output[0], image)
        graph.remove(quantize)
        graph.set_input_type(image, TensorProto.UINT8)
        return []


def _problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterable[str]:
    if node.op_type != "QuantizeLinear":
        yield f"'{node.name}' ({node.op_type}) reads the input, not a QuantizeLinear"
        return
    scale, zero_point = graph.operand(node, 1), graph.operand(node, 2)
    if scale is None or scale.size != 1 or not np.all(scale > 0):
        yield f"the scale of '{node.name}' is not one positive constant"
    if zero_point is None or zero_point.dtype != np.uint8:
        yield f"'{node.name}' does not write uint8"
    if graph.is_output(node.output[0]):
        yield f"the codes of '{node.name}' are an output"
