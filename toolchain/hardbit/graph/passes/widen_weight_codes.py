"""Shift low-bit weight codes up into the int8 range, where that gives a bias a finer unit to be written in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass
from hardbit.graph.quantized_layers import QuantizedLayer, bias_is_on_grid, quantized_layers

__all__ = ["WidenWeightCodes"]


class WidenWeightCodes(Pass):
    """codes * 2^k with scale / 2^k are the same weights. An integer kernel holds the bias in units of s_x * s_w, which
    are coarse at few bits; after the shift they are 2^k times finer.

    Only layers whose bias is not on the grid already are touched: where it is, the shift changes nothing in the result,
    and small codes are safer on CPUs without VNNI, whose U8xS8 products saturate at 16 bits.
    """

    name = "widen_weight_codes"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for layer in _layers_off_grid(graph):
            if _spare_bits(graph, layer) > 0:
                yield f"the weight codes of '{layer.node.name}' do not fill the int8 range"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for layer in _layers_off_grid(graph):
            shift = _spare_bits(graph, layer)
            codes, scale = graph.operand(layer.weight, 0), graph.operand(layer.weight, 1)
            if shift > 0 and codes is not None and scale is not None:
                wide = (codes.astype(np.int32) << shift).astype(np.int8)
                for index, hint, value in ((0, "codes", wide), (1, "scale", np.ldexp(scale, -shift))):
                    graph.set_input(
                        layer.weight, index, graph.add_constant(f"{layer.weight.name}.wide.{hint}", np.asarray(value))
                    )
        return []


def _layers_off_grid(graph: OnnxGraph) -> list[QuantizedLayer]:
    return [layer for layer in quantized_layers(graph) if not bias_is_on_grid(graph, layer)]


def _spare_bits(graph: OnnxGraph, layer: QuantizedLayer) -> int:
    """The largest k such that codes * 2^k are int8 and scale / 2^k are normal float32 numbers."""
    codes, scale = graph.operand(layer.weight, 0), graph.operand(layer.weight, 1)
    if codes is None or scale is None or codes.dtype != np.int8 or not codes.any():
        return 0
    low, high = int(codes.min()), int(codes.max())
    shift = 0
    while high << (shift + 1) <= 127 and low << (shift + 1) >= -128:
        if np.ldexp(scale.min(), -(shift + 1)) < np.finfo(np.float32).tiny:
            break
        shift += 1
    return shift
