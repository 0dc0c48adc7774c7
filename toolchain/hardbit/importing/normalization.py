"""BatchNormalization of inference is a factor and a shift for each channel: they go into the layer before it."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit_deploy.errors import HardbitError

__all__ = ["fold_batch_normalization"]


def fold_batch_normalization(graph: OnnxGraph) -> list[str]:
    """Fold, in place, each BatchNormalization into the Conv or Gemm that only it reads; returns notes on what was done.

    One that has no such layer before it becomes a Mul and an Add of one number for each channel. Arithmetic is float64.
    Raises HardbitError for one in training mode, whose result depends on the other images of the batch.
    """
    folded = written = 0
    for node in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        factor, shift = _factor_and_shift(graph, node)
        layer = graph.producer(node.input[0])
        if layer is not None and _takes(graph, layer, node):
            _fold(graph, layer, factor, shift)
            output = node.output[0]
            graph.remove(node)
            graph.set_output(layer, output)
            folded += 1
        else:
            _write_out(graph, node, factor, shift)
            written += 1
    graph.prune()
    notes = [f"{folded} BatchNormalization folded into the layers before them"] if folded else []
    return notes + ([f"{written} BatchNormalization written as factor and shift"] if written else [])


def _factor_and_shift(graph: OnnxGraph, node: onnx.NodeProto) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if attribute(node, "training_mode", 0) or len([name for name in node.output if name]) > 1:
        raise HardbitError(
            "this BatchNormalization is in training mode: it looks at the whole batch",
            where=node.name,
            remedy="export the network for inference (model.eval())",
        )
    values = [graph.operand(node, index) for index in range(1, 5)]
    if any(value is None for value in values):
        raise HardbitError("the statistics of this BatchNormalization are no constants", where=node.name)
    scale, bias, mean, variance = (np.asarray(value, np.float64) for value in values)
    factor = scale / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))  # type: ignore[arg-type]
    return factor, bias - mean * factor


def _takes(graph: OnnxGraph, layer: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    """Whether `layer` has constant weights with one row for each channel, and nobody else reads it."""
    if graph.is_output(node.input[0]) or len(graph.consumers(node.input[0])) != 1:
        return False
    weights = graph.operand(layer, 1) if layer.op_type in ("Conv", "Gemm") else None
    if weights is None or (len(layer.input) > 2 and layer.input[2] and graph.operand(layer, 2) is None):
        return False
    return layer.op_type == "Conv" or (
        not attribute(layer, "transA", 0) and attribute(layer, "alpha", 1.0) == attribute(layer, "beta", 1.0) == 1.0
    )


def _fold(graph: OnnxGraph, layer: onnx.NodeProto, factor: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    weights, bias = graph.operand(layer, 1), graph.operand(layer, 2)
    values = np.asarray(weights, np.float64)
    rows = layer.op_type == "Conv" or bool(attribute(layer, "transB", 0))
    scaled = values * (factor.reshape(-1, *[1] * (values.ndim - 1)) if rows else factor)
    moved = shift if bias is None else np.asarray(bias, np.float64).reshape(-1) * factor + shift
    graph.set_input(layer, 1, graph.add_constant(f"{layer.name}.folded.weight", scaled.astype(np.float32)))
    graph.set_input(layer, 2, graph.add_constant(f"{layer.name}.folded.bias", moved.astype(np.float32)))


def _write_out(graph: OnnxGraph, node: onnx.NodeProto, factor: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    rank = _rank(graph, node.input[0])
    shape = (-1, *[1] * (rank - 2))
    constants = [
        graph.add_constant(f"{node.name}.{word}", values.astype(np.float32).reshape(shape))
        for word, values in (("factor", factor), ("shift", shift))
    ]
    scaled = graph.unused_name(f"{node.name}.scaled")
    multiply = helper.make_node("Mul", [node.input[0], constants[0]], [scaled], name=f"{node.name}.scale")
    add = helper.make_node("Add", [scaled, constants[1]], [node.output[0]], name=node.name)
    graph.insert_before(node, multiply)
    graph.insert_before(node, add)
    graph.remove(node)


def _rank(graph: OnnxGraph, tensor: str) -> int:
    inferred = onnx.shape_inference.infer_shapes(graph.to_model()).graph
    for value in (*inferred.value_info, *inferred.input):
        if value.name == tensor and value.type.tensor_type.HasField("shape"):
            return len(value.type.tensor_type.shape.dim)
    raise HardbitError(
        "the rank of a normalized tensor cannot be inferred", where=tensor, remedy="export with a fixed image size"
    )
