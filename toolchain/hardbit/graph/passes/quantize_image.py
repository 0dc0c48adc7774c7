"""Give an image that the network reads as floats a quantizer, so that bytes can enter."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, mark_bits
from hardbit.graph.passes.base import Pass, ValuePreserving

__all__ = ["QuantizeImage"]

PIXEL_SCALE = 1 / 256
PIXEL_ZERO_POINT = 128


class QuantizeImage(Pass):
    """A first layer in float reads (byte - 128) / 256, which a QuantizeLinear and DequantizeLinear of that scale leave
    as it is. Where one quantizer reads the image already, nothing is done.

    The codes are uint8 with zero point 128, or where they are to be `signed`, int8 with zero point 0.
    """

    name = "quantize_image"
    value_preserving = ValuePreserving.ON_BYTES

    def __init__(self, *, signed: bool = False) -> None:
        self.zero_point = np.int8(0) if signed else np.uint8(PIXEL_ZERO_POINT)

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        if len(graph.inputs) != 1:
            yield f"the graph has {len(graph.inputs)} inputs"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        if not _is_quantized(graph):
            yield f"the input '{graph.inputs[0].name}' is not read by one quantizer alone"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        if _is_quantized(graph):
            return []
        image = graph.inputs[0].name
        readers = graph.consumers(image)
        scale = graph.add_constant(f"{image}.scale", np.float32(PIXEL_SCALE))
        zero_point = graph.add_constant(f"{image}.zero_point", self.zero_point)
        codes, floats = graph.unused_name(f"{image}.codes"), graph.unused_name(f"{image}.floats")
        place = readers[0]
        for operator, source, target in (("QuantizeLinear", image, codes), ("DequantizeLinear", codes, floats)):
            name = graph.unused_node_name(f"{image}.{operator.removesuffix('Linear').lower()}")
            node = helper.make_node(operator, [source, scale, zero_point], [target], name=name)
            mark_bits(node, 8)
            graph.insert_before(place, node)
        graph.replace_uses(image, floats, readers)
        return []


def _is_quantized(graph: OnnxGraph) -> bool:
    return [node.op_type for node in graph.consumers(graph.inputs[0].name)] == ["QuantizeLinear"]
