"""Write every int32 bias as the float numbers that it stands for: TensorRT dequantizes no int32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass

__all__ = ["FloatBiases"]


class FloatBiases(Pass):
    """A DequantizeLinear of constant int32 codes becomes an initializer: float32(code) * scale, the very product that
    the node computes."""

    name = "float_biases"

    def requires(self, graph: OnnxGraph) -> Iterable[str]:
        for node, codes in _biases(graph):
            scale, zero_point = graph.operand(node, 1), graph.operand(node, 2)
            if scale is None or scale.size not in (1, codes.size):
                yield f"'{node.name}' has neither one constant scale nor one per channel"
            if zero_point is None or zero_point.any():
                yield f"the zero point of '{node.name}' is not 0"
            if codes.ndim > 1:
                yield f"the int32 codes of '{node.name}' are no bias: they have {codes.ndim} axes"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for node, _ in _biases(graph):
            yield f"'{node.name}' still dequantizes int32 codes"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        for node, codes in list(_biases(graph)):
            scale = graph.operand(node, 1)
            if scale is not None:
                values = codes.astype(np.float32) * scale.reshape(-1 if codes.ndim else ())
                graph.replace_uses(node.output[0], graph.add_constant(f"{node.output[0]}.floats", np.asarray(values)))
                graph.remove(node)
        return []


def _biases(graph: OnnxGraph) -> Iterator[tuple[onnx.NodeProto, NDArray[np.int32]]]:
    for node in graph.nodes:
        codes = graph.operand(node, 0) if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.dtype == np.int32:
            yield node, codes
