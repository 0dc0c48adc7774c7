"""TensorRT and TensorRT for RTX: what they keep in INT8, and the passes that bring a canonical graph there.

The lowered graph is Q/DQ in standard ONNX, for a strongly typed build. What TensorRT would run in float without a word,
read otherwise than written, or die of, is refused here by the node's name. That the builder did keep the integers is
proved where it builds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import onnx

from hardbit.graph.canonical_form import check_canonical
from hardbit.graph.onnx_graph import OnnxGraph, float_reason
from hardbit.graph.passes import (
    CodesIn,
    FloatBiases,
    FloatClips,
    HalfFloats,
    Pass,
    PlainScales,
    QuantizeImage,
    RemoveIdentities,
    SignedActivations,
    StripInitializerInputs,
    run_passes,
)
from hardbit.graph.quantized_layers import LAYER_OPERATORS, dequantizer_of
from hardbit.targets.tensorrt_operators import OPERATORS
from hardbit_deploy.errors import HardbitError

__all__ = ["PASSES", "PREPARATION", "Problem", "check_executable", "execution_problems", "lower"]

PREPARATION: tuple[Pass, ...] = (StripInitializerInputs(), RemoveIdentities())
PASSES: tuple[Pass, ...] = (
    QuantizeImage(signed=True),
    SignedActivations(),
    FloatClips(),
    FloatBiases(),
    PlainScales(),
    CodesIn(),
)
_UNSIGNED_REASON = "8-bit unsigned codes: TensorRT would read them as INT8 and cut them off at 127"
_UNSIGNED_REMEDY = "train under profile 'tensorrt': 7 bits behind a ReLU, [0, 127]; or 'tensorrt-signed'"


def lower(
    canonical: onnx.ModelProto,
    report: Callable[[str], None] | None = None,
    *,
    target: str = "tensorrt",
    float16: bool = False,
) -> onnx.ModelProto:
    """The engine graph: input `image` int8 (batch, channels, height, width) = pixel - 128, output `logits` float32
    (batch, classes).

    Every layer keeps its name. With `float16` what the graph declares float is computed in float16. Raises HardbitError
    that names the node when TensorRT would not execute the graph as it is written.
    """
    changes: list[str] = []

    def note(change: str) -> None:
        changes.append(change)
        if report is not None:
            report(change)

    check_canonical(canonical)
    prepared = run_passes(canonical, PREPARATION)
    check_executable(OnnxGraph(prepared))
    graph = OnnxGraph(run_passes(prepared, (HalfFloats(), *PASSES) if float16 else PASSES, note))
    graph.set_metadata({"hardbit.format": "engine-1", "hardbit.target": target})
    if changes:
        graph.set_metadata({"hardbit.changes": json.dumps(changes)})
    return graph.to_model()


def check_executable(graph: OnnxGraph) -> None:
    """Raise HardbitError for the first node that TensorRT would run in float although its operands are codes, or with
    other numbers than the graph has, or not at all.

    `graph` is canonical and free of Identity nodes.
    """
    for where, message, remedy in execution_problems(graph):
        raise HardbitError(message, where=where, remedy=remedy)


Problem = tuple[str, str, str]


def execution_problems(graph: OnnxGraph) -> Iterator[Problem]:
    """(node, message, remedy) of each thing that `check_executable` refuses."""
    for node in graph.nodes:
        if node.op_type not in OPERATORS:
            yield node.name, f"TensorRT has no {node.op_type}", "write it in operators that its ONNX parser takes"
        elif node.op_type == "QuantizeLinear":
            yield from _quantizer_problems(graph, node)
        elif node.op_type == "DequantizeLinear" and graph.is_constant(node.input[0]):
            yield from _weight_problems(graph, node)
        elif node.op_type in LAYER_OPERATORS and float_reason(node) is None:
            yield from _half_quantized_problems(graph, node)
    yield from _interface_problems(graph)


def _quantizer_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    zero_point = graph.operand(node, 2)
    if zero_point is None:
        return
    zero = int(zero_point.item())
    if zero != (128 if zero_point.dtype == np.uint8 and zero else 0):
        yield (
            node.name,
            f"the {zero_point.dtype} zero point is {zero}: TensorRT takes symmetric codes alone",
            "quantize with zero point 0",
        )
    elif zero_point.dtype == np.uint8 and zero == 0:
        for reader in graph.consumers(node.output[0]):
            high = graph.operand(reader, 2) if reader.op_type == "Clip" else None
            if high is None or high.item() > 127:
                yield node.name, _UNSIGNED_REASON, _UNSIGNED_REMEDY
                return


def _weight_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    codes = graph.operand(node, 0)
    if codes is not None and codes.dtype == np.uint8:
        yield node.name, "the weights are uint8: TensorRT takes int8 with zero point 0", "quantize them symmetrically"


def _half_quantized_problems(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Problem]:
    quantized = [dequantizer_of(graph, tensor) is not None for tensor in node.input[:2]]
    if not any(quantized) or all(quantized):
        return
    if quantized[0]:
        yield (
            node.name,
            f"{node.op_type} would run in float: its weights are not quantized",
            "store the weights as int8 codes with a DequantizeLinear",
        )
        return
    source = graph.producer(node.input[0])
    read = "the image" if source is None else f"'{source.name}' ({source.op_type})"
    yield (
        node.name,
        f"{node.op_type} would run in float: its activations are the numbers of {read}",
        "put a fresh QuantizeLinear and DequantizeLinear right before it (after Add, Concat, AveragePool, Resize)",
    )


def _interface_problems(graph: OnnxGraph) -> Iterator[Problem]:
    readers = graph.consumers("image")
    names = ", ".join(f"'{reader.name}' ({reader.op_type})" for reader in readers)
    if [reader.op_type for reader in readers] == ["QuantizeLinear"]:
        zero_point = graph.operand(readers[0], 2)
        if zero_point is not None and zero_point.dtype == np.uint8 and zero_point.item() != 128:
            yield readers[0].name, "the image's codes are not pixel - 128", "quantize it to int8 with zero point 0"
    elif not readers or any(float_reason(reader) is None for reader in readers):
        yield "image", f"the input is read by {names or 'nothing'}", "quantize the image once: the engine reads int8"
