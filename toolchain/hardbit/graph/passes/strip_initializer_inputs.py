"""Remove initializers from the graph's inputs, so that a runtime may treat them as constants."""

from __future__ import annotations

from collections.abc import Iterable

from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes.base import Pass

__all__ = ["StripInitializerInputs"]


class StripInitializerInputs(Pass):
    """An initializer that is an input too is a default that callers may override: nothing can be folded or fused."""

    name = "strip_initializer_inputs"

    def ensures(self, graph: OnnxGraph) -> Iterable[str]:
        for name in graph.initializer_inputs:
            yield f"initializer '{name}' is a graph input"

    def rewrite(self, graph: OnnxGraph) -> list[str]:
        graph.keep_inputs([value.name for value in graph.inputs])
        return []
