"""Bring a float graph into the shapes that integer kernels have: weights (outputs, inputs), biases inside their layer.

Every rewrite computes the same numbers up to the rounding of float32. What fits none of these forms stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.graph.passes import RemoveIdentities, StripInitializerInputs, run_passes
from hardbit.ptq.tensor_shapes import Shape, tensor_shapes

__all__ = ["matmul_as_gemm", "prepare", "with_initializers"]


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the float classifier `model` whose layers are Conv and Gemm with constant weights where they can be.

    Constant nodes become initializers, Identity nodes go, every node gets a name. Products with a constant matrix
    become Gemm on rows; a constant that is added to or multiplied with each channel of a layer's result moves into the
    layer; an average over both spatial axes becomes GlobalAveragePool.
    """
    graph = OnnxGraph(run_passes(with_initializers(model), (StripInitializerInputs(), RemoveIdentities())))
    for node in graph.nodes:
        if not node.name:
            node.name = graph.unused_node_name(node.output[0] or node.op_type)
    for rewrite in (_rows_for_matmul, _gemm_by_rows_of_weights, _constants_into_layers, _mean_as_pooling):
        shapes = tensor_shapes(graph.to_model())
        for node in list(graph.nodes):
            rewrite(graph, node, shapes)
    graph.prune()
    return graph.to_model()


def with_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose Constant nodes with a tensor are initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = []
    for node in copy.graph.node:
        value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and value is not None:
            copy.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(value), node.output[0]))
        else:
            kept.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _rows_for_matmul(graph: OnnxGraph, node: onnx.NodeProto, shapes: dict[str, Shape]) -> None:
    """MatMul(x, W) with a constant W (inputs, outputs) becomes Gemm."""
    weights = graph.operand(node, 1) if node.op_type == "MatMul" else None
    if weights is not None and weights.ndim == 2:
        matmul_as_gemm(graph, node, shapes.get(node.input[0]), weights.shape[1])


def matmul_as_gemm(graph: OnnxGraph, node: onnx.NodeProto, shape: Shape | None, outputs: int) -> onnx.NodeProto | None:
    """Put a Gemm with the same two operands in the place of a MatMul by a matrix of so many `outputs`; where x, of
    `shape`, has more than two axes, its rows go in by a Reshape and come out by another. None where `shape` is unknown.
    """
    if shape is None or len(shape) < 2 or None in shape[1:]:
        return None
    source, result = node.input[0], node.output[0]
    gemm = helper.make_node("Gemm", [source, node.input[1]], [result], name=node.name)
    graph.insert_before(node, gemm)
    graph.remove(node)
    if len(shape) == 2:
        return gemm
    rows = graph.add_constant(f"{node.name}.rows.shape", np.array([-1, shape[-1]], np.int64))
    back = graph.add_constant(f"{node.name}.shape", np.array([-1, *shape[1:-1], outputs], np.int64))
    flat, product = graph.unused_name(f"{node.name}.rows"), graph.unused_name(f"{node.name}.product")
    graph.insert_before(gemm, _reshape(graph, source, rows, flat, f"{node.name}.to_rows"))
    graph.set_input(gemm, 0, flat)
    graph.set_output(gemm, product)
    graph.insert_after(gemm, _reshape(graph, product, back, result, f"{node.name}.from_rows"))
    return gemm


def _reshape(graph: OnnxGraph, source: str, shape: str, target: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Reshape", [source, shape], [target], name=graph.unused_node_name(name))


def _gemm_by_rows_of_weights(graph: OnnxGraph, node: onnx.NodeProto, shapes: dict[str, Shape]) -> None:
    """alpha and beta go into the constants; the weights are turned to (outputs, inputs), the bias to (outputs,)."""
    weights = graph.operand(node, 1) if node.op_type == "Gemm" else None
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = graph.operand(node, 2) if has_bias else None
    if weights is None or attribute(node, "transA", 0) or (has_bias and bias is None):
        return
    alpha, beta = (np.asarray(attribute(node, name, 1.0), np.float32) for name in ("alpha", "beta"))
    rows = weights if attribute(node, "transB", 0) else weights.T
    outputs = rows.shape[0]
    if bias is not None and (bias.size not in (1, outputs) or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1)):
        return
    graph.set_input(node, 1, graph.add_constant(f"{node.name}.weight", np.ascontiguousarray(rows * alpha)))
    if bias is not None:
        values = np.broadcast_to(bias.reshape(-1) * beta, (outputs,)).astype(np.float32)
        graph.set_input(node, 2, graph.add_constant(f"{node.name}.bias", values))
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("transB", 1))


def _constants_into_layers(graph: OnnxGraph, node: onnx.NodeProto, shapes: dict[str, Shape]) -> None:
    """Conv or Gemm, then Add, Sub or Mul of one constant a channel: the constant goes into bias and weights."""
    if node.op_type not in ("Add", "Sub", "Mul") or len(node.input) != 2:
        return
    place = next((index for index in (1, 0) if graph.is_constant(node.input[index])), None)
    if place is None or (node.op_type == "Sub" and place == 0):
        return
    path = _path_to_layer(graph, node.input[1 - place])
    constant = graph.operand(node, place)
    if path is None or constant is None:
        return
    layer, moved = path
    weights = graph.operand(layer, 1)
    if weights is None or weights.dtype != np.float32:
        return
    values = _per_channel(constant, len(weights), len(shapes.get(node.input[1 - place], ())), layer.op_type)
    has_bias = len(layer.input) > 2 and bool(layer.input[2])
    bias = graph.operand(layer, 2) if has_bias else np.zeros(len(weights), np.float32)
    if values is None or bias is None or bias.shape != (len(weights),):
        return
    if node.op_type == "Mul":
        factor = values.reshape(-1, *[1] * (weights.ndim - 1))
        graph.set_input(layer, 1, graph.add_constant(f"{layer.name}.scaled.weight", weights * factor))
        bias = bias * values
    else:
        bias = bias - values if node.op_type == "Sub" else bias + values
    graph.set_input(layer, 2, graph.add_constant(f"{layer.name}.moved.bias", bias.astype(np.float32)))
    _leave_out(graph, node, moved or layer)


def _path_to_layer(graph: OnnxGraph, tensor: str) -> tuple[onnx.NodeProto, onnx.NodeProto | None] | None:
    """The layer that alone makes `tensor` for one reader, and the Reshape of its rows between, if there is one."""
    if len(graph.consumers(tensor)) != 1 or graph.is_output(tensor):
        return None
    producer, between = graph.producer(tensor), None
    if producer is not None and producer.op_type == "Reshape":
        source = graph.producer(producer.input[0])
        if source is None or producer.name != f"{source.name}.from_rows" or len(graph.consumers(producer.input[0])) > 1:
            return None
        producer, between = source, producer
    if producer is None or producer.op_type not in ("Conv", "Gemm") or graph.operand(producer, 1) is None:
        return None
    if producer.op_type == "Gemm" and not attribute(producer, "transB", 0):
        return None
    return producer, between


def _per_channel(constant: NDArray[Any], channels: int, rank: int, operator: str) -> NDArray[np.float32] | None:
    """The constant as (channels,), if it broadcasts along nothing but the channels of a tensor of `rank` axes."""
    if constant.size == 1 and constant.ndim <= max(rank, 1):
        return np.full(channels, constant.reshape(-1)[0], np.float32)
    axis = 1 if operator == "Conv" else rank - 1
    padded = (1,) * (rank - constant.ndim) + constant.shape
    wanted = tuple(channels if index == axis else 1 for index in range(rank))
    return constant.reshape(-1).astype(np.float32) if padded == wanted else None


def _leave_out(graph: OnnxGraph, node: onnx.NodeProto, before: onnx.NodeProto) -> None:
    """Let `before` write what `node` wrote."""
    result = node.output[0]
    graph.remove(node)
    graph.set_output(before, result)


def _mean_as_pooling(graph: OnnxGraph, node: onnx.NodeProto, shapes: dict[str, Shape]) -> None:
    """ReduceMean over both spatial axes of (batch, channels, rows, columns) is GlobalAveragePool."""
    if node.op_type != "ReduceMean" or len(shapes.get(node.input[0], ())) != 4:
        return
    axes = graph.operand(node, 1)
    given = attribute(node, "axes", None) if axes is None else axes.tolist()
    channels = shapes[node.input[0]][1]
    if not isinstance(given, list) or {axis % 4 for axis in given} != {2, 3} or channels is None:
        return
    result, keeps = node.output[0], bool(attribute(node, "keepdims", 1))
    pooled = result if keeps else graph.unused_name(f"{node.name}.pooled")
    pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)
    graph.insert_before(node, pool)
    graph.remove(node)
    if not keeps:
        name = graph.unused_node_name(f"{node.name}.flatten")
        graph.insert_after(pool, helper.make_node("Flatten", [pooled], [result], name=name, axis=1))
