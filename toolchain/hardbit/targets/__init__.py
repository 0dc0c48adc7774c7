"""Targets: what an engine can execute, and how a canonical graph is lowered to it. One module a target."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import onnx

from hardbit.graph.onnx_graph import OnnxGraph, float_reason
from hardbit.graph.quantized_layers import LAYER_OPERATORS, quantized_layers
from hardbit_deploy.errors import HardbitError

__all__ = ["float_nodes", "integer_nodes", "lower", "names"]

_MODULES: dict[str, tuple[str, dict[str, str]]] = {
    "onnxruntime": ("hardbit.targets.onnxruntime", {}),
    "tensorrt": ("hardbit.targets.tensorrt", {"target": "tensorrt"}),
    "tensorrt_rtx": ("hardbit.targets.tensorrt", {"target": "tensorrt_rtx"}),
}
"""The module that lowers to each target, and how it is to be called."""


def names() -> list[str]:
    """The targets that a graph can be lowered to."""
    return sorted(_MODULES)


def lower(
    canonical: onnx.ModelProto, target: str, report: Callable[[str], None] | None = None, *, float16: bool = False
) -> onnx.ModelProto:
    """The engine graph of `canonical` for `target`; `canonical` is not touched.

    `report` is told of every change of values, one line each; the engine's metadata `hardbit.changes` lists them too.
    Raises HardbitError when the target is unknown, when the graph is not canonical, or when the target would execute in
    float what the graph declares integer; it names the node.

    `float16`: what stays float is computed in float16, which the targets of TensorRT can do.
    """
    if target not in _MODULES:
        raise HardbitError(f"there is no target '{target}'", where="target", remedy=f"known: {', '.join(names())}")
    module, options = _MODULES[target]
    if float16 and not options:
        raise HardbitError(f"target '{target}' has no float16", where="target", remedy="leave float16 out")
    given: dict[str, Any] = options | ({"float16": True} if float16 else {})
    engine: onnx.ModelProto = importlib.import_module(module).lower(canonical, report, **given)
    return engine


def integer_nodes(canonical: onnx.ModelProto) -> list[dict[str, str]]:
    """What the graph declares integer: [{"name", "op"}], in graph order, of every Conv, Gemm and MatMul whose operands
    are both dequantized codes. An engine that runs one of them otherwise is the wrong engine.
    """
    return [{"name": layer.node.name, "op": layer.node.op_type} for layer in quantized_layers(OnnxGraph(canonical))]


def float_nodes(canonical: onnx.ModelProto) -> list[dict[str, str]]:
    """What the graph computes in float, and why: [{"name", "reason"}] in graph order.

    Every Conv, Gemm and MatMul that `integer_nodes` does not list is among them, and the sums, averages, softmaxes and
    the like around them. Activation functions count with the layer before them.
    """
    graph = OnnxGraph(canonical)
    integer = {layer.node.name for layer in quantized_layers(graph)}
    found = []
    for node in graph.nodes:
        reason = float_reason(node)
        if reason is None and node.op_type in LAYER_OPERATORS and node.name not in integer:
            reason = "its operands are not both codes"
        if reason is not None:
            found.append({"name": node.name, "reason": reason})
    return found
