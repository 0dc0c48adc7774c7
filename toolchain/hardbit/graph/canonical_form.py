"""What a canonical graph must look like before any target lowers it; a graph that does not is refused by node name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from hardbit.graph.onnx_graph import OnnxGraph, attribute, bits_of, float_reason
from hardbit_deploy.errors import HardbitError

__all__ = ["FLOAT_OPERATORS", "MINIMUM_OPSET", "OPERATORS", "check_canonical"]

MINIMUM_OPSET = 18
FLOAT_OPERATORS = frozenset({"Div", "Erf", "LayerNormalization", "MatMul", "Mul", "ReduceMean", "Softmax"})
"""What hardbit's own networks compute in float wherever it stands: each such node declares it, with the reason.

Imported networks have further operators of standard ONNX: any is allowed that declares itself float.
"""
OPERATORS = FLOAT_OPERATORS | {
    "Add",
    "AveragePool",
    "Clip",
    "Conv",
    "DequantizeLinear",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "Identity",
    "MaxPool",
    "QuantizeLinear",
    "Relu",
    "Reshape",
    "Transpose",
}
_TINY = np.finfo(np.float32).tiny
_ACTIVATION_TYPES = (np.int8, np.uint8)


def check_canonical(model: onnx.ModelProto) -> None:
    """Raise HardbitError for the first thing in `model` that the canonical form does not allow.

    Scales are finite, positive, normal float32 constants; zero points are explicit; weights are int8 initializers with
    zero point 0 per output channel; codes are clipped only as integers; what has no integer form declares that it is
    computed in float. What a target can execute is not asked here.
    """
    for where, message, remedy in _problems(model):
        raise HardbitError(message, where=where, remedy=remedy)


Problem = tuple[str, str, str]


def _problems(model: onnx.ModelProto) -> Iterator[Problem]:
    yield from _model_problems(model)
    graph = OnnxGraph(model)
    yield from _interface_problems(graph)
    names: set[str] = set()
    for node in graph.nodes:
        if not node.name or node.name in names:
            yield node.name or node.op_type, "a node needs a name of its own", "name every node once"
        names.add(node.name)
        if node.op_type == "QuantizeLinear":
            yield from _quantize_problems(graph, node)
        elif node.op_type == "DequantizeLinear":
            yield from _dequantize_problems(graph, node)
        elif node.op_type == "Clip":
            yield from _clip_problems(graph, node)
        elif node.op_type == "Gemm" and float_reason(node) is None:
            yield from _gemm_problems(node)
        elif node.op_type in FLOAT_OPERATORS and float_reason(node) is None:
            yield (
                node.name,
                f"{node.op_type} is computed in float, and nothing says why",
                "declare it: hardbit.float in the node's metadata",
            )


def _model_problems(model: onnx.ModelProto) -> Iterator[Problem]:
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < MINIMUM_OPSET:
            yield (
                "graph",
                f"opset {opset.version} is too old",
                f"export with opset {MINIMUM_OPSET} or newer",
            )
    for node in model.graph.node:
        known = node.op_type in OPERATORS or float_reason(node) is not None
        if not known or node.domain not in ("", "ai.onnx"):
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            yield (
                node.name or node.op_type,
                f"operator {operator} is not known",
                f"known: {', '.join(sorted(OPERATORS))}; any other declares that it is float",
            )


def _interface_problems(graph: OnnxGraph) -> Iterator[Problem]:
    for kind, values, name in (("input", graph.inputs, "image"), ("output", graph.outputs, "logits")):
        if [value.name for value in values] != [name]:
            found = ", ".join(value.name for value in values) or "none"
            yield "graph", f"the {kind}s are: {found}", f"a canonical graph has one {kind}, '{name}'"
        elif values[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            yield name, f"the {kind} is not float32", "let the first QuantizeLinear make the codes"


def _quantize_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    scale, zero_point = graph.operand(node, 1), graph.operand(node, 2)
    yield from _scale_problems(node, scale)
    if graph.is_constant(node.input[0]):
        yield node.name, "a constant is quantized at run time", "store the weights as int8 codes"
    if scale is not None and scale.size != 1:
        yield node.name, "an activation has one scale per channel", "use one scale for the tensor"
    if zero_point is None:
        yield (
            node.name,
            "the zero point is not a constant of its own",
            "give it explicitly: its type is the codes' type",
        )
    elif zero_point.dtype not in _ACTIVATION_TYPES or zero_point.size != 1:
        yield node.name, f"the zero point is {zero_point.dtype} of shape {zero_point.shape}", "use one int8 or uint8"


def _dequantize_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    scale, zero_point = graph.operand(node, 1), graph.operand(node, 2)
    yield from _scale_problems(node, scale)
    if scale is None:
        return
    if zero_point is None:
        yield node.name, "the zero point is not a constant of its own", "give it explicitly"
    elif zero_point.shape != scale.shape:
        yield node.name, f"scale {scale.shape} and zero point {zero_point.shape} differ in shape", "give them one shape"
    codes = graph.constant(node.input[0])
    if codes is not None:
        yield from _parameter_problems(node, codes, scale, zero_point)
    else:
        yield from _activation_problems(graph, node, scale, zero_point)


def _scale_problems(node: onnx.NodeProto, scale: NDArray[Any] | None) -> Iterator[Problem]:
    if scale is None:
        yield node.name, "the scale is computed at run time", "freeze the scale to a constant"
    elif scale.dtype != np.float32:
        yield node.name, f"the scale is {scale.dtype}", "use float32"
    else:
        wrong = scale[~(np.isfinite(scale) & (scale >= _TINY))]
        if wrong.size:
            yield (
                node.name,
                f"the scale {wrong.flat[0]:g} is not a positive, finite, normal number",
                "a dead channel or a failed calibration: give it a scale like its neighbours'",
            )


def _parameter_problems(
    node: onnx.NodeProto,
    codes: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[Any] | None,
) -> Iterator[Problem]:
    """A weight (int8, two axes or more) or a bias (int32, one axis), per output channel: axis 0.

    Imported weights that do not fit into int8 once their zero point is taken off are uint8, with one zero point for all
    channels: every kernel that reads uint8 activations reads them too.
    """
    expected = np.int32 if codes.ndim <= 1 else np.int8
    raised = codes.ndim > 1 and zero_point is not None and codes.dtype == zero_point.dtype == np.uint8
    if codes.dtype != expected and not raised:
        yield node.name, f"codes of shape {codes.shape} are {codes.dtype}", f"store them as {np.dtype(expected)}"
    if raised and zero_point is not None and np.any(zero_point != zero_point.flat[0]):
        yield node.name, "each channel has a zero point of its own", "give uint8 weights one zero point"
    if not raised and zero_point is not None and np.any(zero_point):
        yield node.name, "the zero point of a parameter is not 0", "quantize weights and biases symmetrically"
    if scale.size != 1 or scale.ndim:
        axis = attribute(node, "axis", 1)
        if axis not in (0, -codes.ndim):
            yield node.name, f"the scale runs along axis {axis}", "scale per output channel: axis 0"
        elif scale.shape != codes.shape[:1]:
            yield node.name, f"{scale.size} scales for {codes.shape[:1]} channels", "one scale per output channel"
    bits = bits_of(node)
    if bits is not None and codes.dtype == np.int8 and codes.size:
        low, high = int(codes.astype(np.int16).min()), int(codes.astype(np.int16).max())
        if low < -(2 ** (bits - 1)) or high > max(2 ** (bits - 1) - 1, 1):
            yield node.name, f"codes from {low} to {high} do not fit the {bits} bits declared", "correct hardbit.bits"


def _activation_problems(
    graph: OnnxGraph, node: onnx.NodeProto, scale: NDArray[Any], zero_point: NDArray[Any] | None
) -> Iterator[Problem]:
    """Dequantized by the very scale and zero point that quantized it, with nothing between but an integer Clip."""
    quantize, clip = graph.producer(node.input[0]), None
    if quantize is not None and quantize.op_type == "Clip":
        clip, quantize = quantize, graph.producer(quantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        source = quantize.name if quantize is not None else node.input[0]
        yield (
            node.name,
            f"its codes come from '{source}'",
            "QuantizeLinear, integer Clip, DequantizeLinear: nothing else",
        )
        return
    for index, ours, what in ((1, scale, "scale"), (2, zero_point, "zero point")):
        theirs = graph.operand(quantize, index)
        if ours is not None and theirs is not None and not _same_number(ours, theirs):
            yield node.name, f"its {what} is not that of '{quantize.name}'", "share the initializer"
    bits = bits_of(node)
    if bits is not None and zero_point is not None:
        low, high = _code_range(graph, clip, zero_point)
        if high - low >= 2**bits and not (bits == 1 and (low, high) == (-1, 1)):
            yield node.name, f"codes from {low} to {high} do not fit the {bits} bits declared", "clip the codes"


def _same_number(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    return ours.dtype == theirs.dtype and np.array_equal(ours.ravel(), theirs.ravel())


def _code_range(graph: OnnxGraph, clip: onnx.NodeProto | None, zero_point: NDArray[Any]) -> tuple[int, int]:
    limits = np.iinfo(zero_point.dtype)
    low = graph.operand(clip, 1) if clip is not None else None
    high = graph.operand(clip, 2) if clip is not None else None
    return int(limits.min if low is None else low.item()), int(limits.max if high is None else high.item())


def _clip_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    if float_reason(node) is not None:
        return
    remedy = "clip the codes, between QuantizeLinear and DequantizeLinear"
    source = graph.producer(node.input[0])
    if graph.is_constant(node.input[0]):
        yield node.name, "a constant is clipped at run time", "clip weights before they are stored"
    elif source is None or source.op_type != "QuantizeLinear":
        yield node.name, "a Clip of float numbers keeps the layer before it in float", remedy
    elif any(reader.op_type != "DequantizeLinear" for reader in graph.consumers(node.output[0])):
        yield node.name, "the clipped codes are not dequantized next", remedy
    for index in (1, 2):
        if len(node.input) > index and node.input[index] and not graph.is_constant(node.input[index]):
            yield node.name, "a bound is computed at run time", "make the bounds constants"


def _gemm_problems(node: onnx.NodeProto) -> Iterator[Problem]:
    for name, default, wanted in (("alpha", 1.0, 1.0), ("beta", 1.0, 1.0), ("transA", 0, 0), ("transB", 0, 1)):
        value = attribute(node, name, default)
        if value != wanted:
            yield node.name, f"Gemm with {name}={value}", f"write it with {name}={wanted}, weights (outputs, inputs)"
