"""Let the graph read an image as int8 codes, pixel - 128: the first QuantizeLinear goes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass, ValuePreserving

__all__ = ["CodesIn"]


class CodesIn(Pass):
    """The network's input is (pixel - 128) * s with the s of its first quantizer, whose int8 codes are therefore
    pixel - 128. TensorRT's parser refuses uint8 inputs, and takes int8.
    """

    name = "codes_in"
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
        readers = graph.consumers(image.name)
        if len(readers) != 1:
            yield f"the input '{image.name}' is read by {len(readers)} nodes, not by one quantizer"
        for node in readers:
            yield from _problems(graph, node)

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for value in graph.inputs:
            if value.type.tensor_type.elem_type != TensorProto.INT8:
                yield f"the input '{value.name}' is not int8"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        image = graph.inputs[0].name
        quantize = graph.consumers(image)[0]
        graph.replace_uses(quantize.output[0], image)
        graph.remove(quantize)
        graph.set_input_type(image, TensorProto.INT8)
        return []


def _problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterable[str]:
    if node.op_type != "QuantizeLinear":
        yield f"'{node.name}' ({node.op_type}) reads the input, not a QuantizeLinear"
        return
    scale, zero_point = graph.operand(node, 1), graph.operand(node, 2)
    if scale is None or scale.size != 1 or not np.all(scale > 0):
        yield f"the scale of '{node.name}' is not one positive constant"
    if zero_point is None or zero_point.dtype != np.int8 or zero_point.any():
        yield f"'{node.name}' does not write int8 with zero point 0"
    if graph.is_output(node.output[0]):
        yield f"the codes of '{node.name}' are an output"
