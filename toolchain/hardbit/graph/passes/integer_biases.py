"""Write every bias of a quantized layer as int32 codes in units of s_x * s_w, as integer kernels add it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, mark_bits
from hardbit.graph.passes.base import Pass, ValuePreserving
from hardbit.graph.quantized_layers import (
    QuantizedLayer,
    bias_is_on_grid,
    bias_unit,
    bias_values,
    quantized_layers,
)
from hardbit_deploy.errors import HardbitError

__all__ = ["IntegerBiases"]

_INT32 = np.iinfo(np.int32)


class IntegerBiases(Pass):
    """A kernel adds the bias to its accumulator, one count of which is worth float32(s_x * s_w).

    A float bias, or an int32 bias in another unit, is rounded to the nearest count; whatever this changes is reported.
    ONNX Runtime would do the same in silence (Conv), run the layer in float (Gemm with a float bias), or add the codes
    as if they were in its own unit (QGemm does not look at the bias' scale).
    """

    name = "integer_biases"
    value_preserving = ValuePreserving.UNLESS_REPORTED

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        for layer in quantized_layers(graph):
            if len(layer.node.input) > 2 and layer.node.input[2] and bias_values(graph, layer) is None:
                yield f"the bias of '{layer.node.name}' is neither an initializer nor its DequantizeLinear"
            if bias_unit(graph, layer) is None:
                yield f"the scales of '{layer.node.name}' are not constant"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for layer in quantized_layers(graph):
            if not bias_is_on_grid(graph, layer):
                yield f"the bias of '{layer.node.name}' is not in units of s_x * s_w"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        changes = []
        for layer in quantized_layers(graph):
            values, unit = bias_values(graph, layer), bias_unit(graph, layer)
            if values is None or unit is None or bias_is_on_grid(graph, layer):
                continue
            scale = np.broadcast_to(unit, values.shape).astype(np.float32)
            codes = _rounded(values, scale, layer.node.name)
            _write(graph, layer, codes, scale)
            moved = np.abs(codes.astype(np.float32) * scale - values)
            if moved.any():
                changes.append(
                    f"{layer.node.name}: {np.count_nonzero(moved)} of {moved.size} biases rounded to the unit of their "
                    f"accumulator, by at most {moved.max():.3g} ({(moved / scale).max():.2g} units)"
                )
        return changes


def _rounded(values: NDArray[np.float32], scale: NDArray[np.float32], name: str) -> NDArray[np.int32]:
    counts = np.rint(values.astype(np.float64) / scale.astype(np.float64))
    if np.abs(counts).max(initial=0) > _INT32.max:
        raise HardbitError(
            f"a bias is {np.abs(counts).max():.3g} units of its accumulator and does not fit into 32 bits",
            where=name,
            remedy="a channel's weights are close to zero: give it a larger weight scale or prune it",
        )
    return counts.astype(np.int32)


def _write(graph: OnnxGraph, layer: QuantizedLayer, codes: NDArray[np.int32], scale: NDArray[np.float32]) -> None:
    """Give the layer a DequantizeLinear of its own: another layer with another unit may share the old bias."""
    name = layer.node.name
    inputs = [
        graph.add_constant(f"{name}.bias.codes", codes),
        graph.add_constant(f"{name}.bias.scale", scale),
        graph.add_constant(f"{name}.bias.zero_point", np.zeros(codes.shape, np.int32)),
    ]
    output = graph.unused_name(f"{name}.bias.int32")
    node_name = graph.unused_node_name(f"{name}.bias.dequantize")
    dequantize = helper.make_node("DequantizeLinear", inputs, [output], name=node_name, axis=0)
    mark_bits(dequantize, 32)
    graph.insert_before(layer.node, dequantize)
    graph.set_input(layer.node, 2, output)
