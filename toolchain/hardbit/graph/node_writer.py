"""Nodes and initializers of a canonical graph in the making, every name given once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hardbit.graph.onnx_graph import mark_bits, mark_float

__all__ = ["NodeWriter"]


class NodeWriter:
    """Collects what is written; `nodes` are in topological order if they are written so."""

    def __init__(self, taken: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._names = set(taken)

    def free_name(self, place: str) -> str:
        """`place`, with a number where the name is taken: one pooling module may be called in several places."""
        name, count = place, 1
        while name in self._names:
            name, count = f"{place}_{count}", count + 1
        self._names.add(name)
        return name

    def constant(self, name: str, value: object) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(
        self,
        operator: str,
        inputs: list[str],
        name: str,
        *,
        bits: int | None = None,
        reason: str | None = None,
        **attributes: Any,
    ) -> str:
        """Append a node called `name` and return its output. `bits` is the width of a quantizer, `reason` why the node
        is computed in float."""
        node = helper.make_node(operator, inputs, [f"{name}.out"], name=name, **attributes)
        mark_bits(node, bits)
        mark_float(node, reason)
        self.nodes.append(node)
        return node.output[0]
