"""ONNX Runtime on a CPU: what it keeps in integers, and the passes that bring a canonical graph there.

The lowered graph is still Q/DQ in standard ONNX. ONNX Runtime's own optimiser turns it into QLinearConv, QGemm,
QLinearAdd and QLinearGlobalAveragePool; this module arranges that it can, and refuses graphs where it could not. It
does not prove that it did: that is done on the machine that runs the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import onnx

from hardbit.graph.canonical_form import check_canonical
from hardbit.graph.onnx_graph import OnnxGraph, float_reason
from hardbit.graph.passes import (
    BytesIn,
    DequantizeLate,
    IntegerBiases,
    KeepFloatWeights,
    Pass,
    QuantizeImage,
    RemoveIdentities,
    RemoveNoopClips,
    StripInitializerInputs,
    UnsignedActivations,
    WidenWeightCodes,
    run_passes,
)
from hardbit.graph.quantized_layers import LAYER_OPERATORS, dequantizer_of, quantized_layers
from hardbit_deploy.errors import HardbitError

__all__ = ["PASSES", "PREPARATION", "Problem", "check_executable", "execution_problems", "lower"]

PREPARATION: tuple[Pass, ...] = (StripInitializerInputs(), RemoveIdentities())
PASSES: tuple[Pass, ...] = (
    QuantizeImage(),
    UnsignedActivations(),
    RemoveNoopClips(),
    DequantizeLate(),
    WidenWeightCodes(),
    IntegerBiases(),
    KeepFloatWeights(),
    BytesIn(),
)


def lower(canonical: onnx.ModelProto, report: Callable[[str], None] | None = None) -> onnx.ModelProto:
    """The engine graph: input `image` uint8 (batch, channels, height, width), output `logits` float32 (batch, classes).

    Every layer keeps its name. Raises HardbitError that names the node when the graph cannot run in integers.
    """
    changes: list[str] = []

    def note(change: str) -> None:
        changes.append(change)
        if report is not None:
            report(change)

    check_canonical(canonical)
    prepared = run_passes(canonical, PREPARATION)
    check_executable(OnnxGraph(prepared))
    graph = OnnxGraph(run_passes(prepared, PASSES, note))
    graph.set_metadata({"hardbit.format": "engine-1", "hardbit.target": "onnxruntime"})
    if changes:
        graph.set_metadata({"hardbit.changes": json.dumps(changes)})
    return graph.to_model()


def check_executable(graph: OnnxGraph) -> None:
    """Raise HardbitError for the first layer that ONNX Runtime would execute in float although its operands are codes,
    and although it does not declare that it is float.

    `graph` is canonical and free of Identity nodes.
    """
    for where, message, remedy in execution_problems(graph):
        raise HardbitError(message, where=where, remedy=remedy)


Problem = tuple[str, str, str]


def execution_problems(graph: OnnxGraph) -> Iterator[Problem]:
    """(node, message, remedy) of each thing that `check_executable` refuses.

    A quantized network that is taken as it is has these nodes declared float, with the message as reason.
    """
    layers = {layer.node.name for layer in quantized_layers(graph)}
    for node in graph.nodes:
        if float_reason(node) is not None:
            continue
        if node.name in layers:
            yield from _output_problems(graph, node)
        elif node.op_type in LAYER_OPERATORS:
            yield from _half_quantized_problems(graph, node)
        elif node.op_type == "Add":
            yield from _add_problems(graph, node)
    yield from _input_problems(graph)


def _output_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    """A QLinearConv is made of DequantizeLinear, Conv, at most a Relu, one QuantizeLinear. A QGemm may end in float;
    a Relu of floats within the graph makes one FusedGemm with it, which computes in float."""
    tensor, after = node.output[0], node
    readers = graph.consumers(tensor)
    if len(readers) == 1 and readers[0].op_type == "Relu" and not graph.is_output(tensor):
        after, tensor = readers[0], readers[0].output[0]
        readers = graph.consumers(tensor)
    quantizers = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
    if len(readers) == len(quantizers) == 1 and not graph.is_output(tensor):
        if after.op_type == "Relu":
            yield from _relu_problems(graph, node, quantizers[0])
    elif node.op_type != "Gemm" or quantizers or (after.op_type == "Relu" and not graph.is_output(tensor)):
        names = [f"'{reader.name}' ({reader.op_type})" for reader in readers]
        names += ["the graph's output"] if graph.is_output(tensor) else []
        yield (
            node.name,
            f"{node.op_type} would run in float: its result is read by {', '.join(names) or 'nothing'}, "
            "not by one QuantizeLinear alone",
            "quantize the result once, before anything else reads it (residual Add: quantize both branches)",
        )


def _relu_problems(graph: OnnxGraph, node: onnx.NodeProto, quantize: onnx.NodeProto) -> Iterator[Problem]:
    zero_point = graph.operand(quantize, 2)
    if zero_point is not None and zero_point.item() not in (0, np.iinfo(zero_point.dtype).min):
        yield (
            node.name,
            f"{node.op_type} would run in float: the Relu after it cannot become saturation, because '{quantize.name}' "
            f"has the {zero_point.dtype} zero point {zero_point.item()}",
            "quantize after a Relu with zero point 0",
        )


def _half_quantized_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    operands = ("activations", "weights")
    quantized = [dequantizer_of(graph, tensor) is not None for tensor in node.input[:2]]
    if any(quantized):
        float_operand = operands[quantized.index(False)]
        yield (
            node.name,
            f"{node.op_type} would run in float: its {float_operand} are not quantized",
            "put a fresh QuantizeLinear and DequantizeLinear right before it (needed after AveragePool and Add)"
            if float_operand == "activations"
            else "store the weights as int8 codes with a DequantizeLinear",
        )


def _add_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    branches = {tensor: dequantizer_of(graph, tensor) is not None for tensor in node.input}
    if any(branches.values()) and not all(branches.values()):
        tensor = next(name for name, quantized in branches.items() if not quantized)
        source = graph.producer(tensor)
        yield (
            node.name,
            f"one branch of the Add is not quantized: '{source.name if source is not None else tensor}'",
            "quantize both branches (QLinearAdd), or the layers before it run in float",
        )


def _input_problems(graph: OnnxGraph) -> Iterator[Problem]:
    readers = graph.consumers("image")
    declared = [float_reason(reader) is not None for reader in readers]
    if [reader.op_type for reader in readers] != ["QuantizeLinear"] and not (readers and all(declared)):
        names = ", ".join(f"'{reader.name}' ({reader.op_type})" for reader in readers)
        yield "image", f"the input is read by {names or 'nothing'}", "quantize the image once: the engine reads bytes"
