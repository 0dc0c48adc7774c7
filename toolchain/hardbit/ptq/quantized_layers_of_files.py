"""Layers of a network that is quantized already, in the one form that canonical graphs have.

Conv and Gemm read weights (outputs, inputs, ...) and a bias (outputs,); products with a matrix of codes become Gemm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit.ptq.preparation import matmul_as_gemm
from hardbit.ptq.quantized_parameters import Parameter, numbers_of, parameter_of, write_parameter
from hardbit.ptq.tensor_shapes import tensor_shapes

__all__ = ["constants_as_numbers", "layers_by_output_channel"]

_PARAMETERS = ((1, "weight"), (2, "bias"))


def layers_by_output_channel(graph: OnnxGraph) -> None:
    """Rewrite, in place, every Conv, Gemm and MatMul whose weights are constant codes."""
    shapes = tensor_shapes(graph.to_model())
    for node in list(graph.nodes):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weights = parameter_of(graph, node.input[1])
        if weights is None:
            continue
        if node.op_type == "Conv":
            _write(graph, node, weights, _bias(graph, node))
        elif node.op_type == "Gemm" and not attribute(node, "transA", 0):
            _gemm(graph, node, weights)
        elif node.op_type == "MatMul" and weights.codes.ndim == 2:
            gemm = matmul_as_gemm(graph, node, shapes.get(node.input[0]), weights.codes.shape[1])
            if gemm is not None:
                gemm.attribute.append(helper.make_attribute("transB", 1))
                _write(graph, gemm, weights.turned([1, 0]), _added_bias(graph, gemm, weights.codes.shape[1]))


def _gemm(graph: OnnxGraph, node: onnx.NodeProto, weights: Parameter) -> None:
    alpha, beta = (np.asarray(attribute(node, name, 1.0), np.float32) for name in ("alpha", "beta"))
    if not attribute(node, "transB", 0):
        weights = weights.turned([1, 0])
    bias = _bias(graph, node)
    if isinstance(bias, Parameter):
        bias = replace(bias, scale=bias.scale * beta)
    elif bias is not None:
        bias = bias * beta
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("transB", 1))
    _write(graph, node, replace(weights, scale=weights.scale * alpha), bias)


def _bias(graph: OnnxGraph, node: onnx.NodeProto) -> Parameter | NDArray[np.float32] | None:
    """The bias as int32 codes where the file has such, else as numbers; None where there is none, or a computed one."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    parameter = parameter_of(graph, node.input[2])
    if parameter is not None and parameter.codes.dtype == np.int32 and parameter.codes.ndim == 1:
        return parameter
    return numbers_of(graph, node.input[2])


def _write(
    graph: OnnxGraph, node: onnx.NodeProto, weights: Parameter, bias: Parameter | NDArray[np.float32] | None
) -> None:
    write_parameter(graph, node, 1, "weight", weights)
    outputs = len(weights.codes)
    if isinstance(bias, Parameter):
        write_parameter(graph, node, 2, "bias", bias)
    elif bias is not None and bias.size in (1, outputs):
        values = np.ascontiguousarray(np.broadcast_to(bias.ravel(), (outputs,)), dtype=np.float32)
        graph.set_input(node, 2, graph.add_constant(f"{node.name}.bias", values))


def _added_bias(graph: OnnxGraph, gemm: onnx.NodeProto, outputs: int) -> NDArray[np.float32] | Parameter | None:
    """The constant that alone is added to what `gemm` gives, taken into it: one value an output."""
    last = gemm
    readers = graph.consumers(gemm.output[0])
    if len(readers) == 1 and readers[0].name == f"{gemm.name}.from_rows":
        last = readers[0]
        readers = graph.consumers(last.output[0])
    if len(readers) != 1 or readers[0].op_type != "Add" or graph.is_output(last.output[0]):
        return None
    add = readers[0]
    other = next(name for name in add.input if name != last.output[0])
    values = numbers_of(graph, other)
    if values is None or values.size != outputs or values.shape[-1:] != (outputs,):
        return None
    bias: Any = parameter_of(graph, other)
    graph.remove(add)
    graph.set_output(last, add.output[0])
    whole = bias is not None and bias.codes.dtype == np.int32 and bias.codes.ndim == 1
    return bias if whole else values.ravel()


def constants_as_numbers(graph: OnnxGraph) -> None:
    """Replace, in place, constants that are quantized but no layer's weights or bias by the numbers they stand for."""
    for node in list(graph.nodes):
        if node.op_type != "DequantizeLinear":
            continue
        readers = graph.consumers(node.output[0])
        if all(_is_parameter(reader, node.output[0]) for reader in readers) and graph.is_constant(node.input[0]):
            continue
        parameter = parameter_of(graph, node.output[0])
        if parameter is not None:
            numbers = graph.add_constant(f"{node.output[0]}.values", parameter.numbers())
            graph.replace_uses(node.output[0], numbers)


def _is_parameter(reader: onnx.NodeProto, tensor: str) -> bool:
    written = reader.op_type in ("Conv", "Gemm") and tensor.startswith(f"{reader.name}.")
    return written and any(len(reader.input) > index and reader.input[index] == tensor for index, _ in _PARAMETERS)
