"""Quantizers of activations in somebody's Q/DQ graph, in the form of canonical graphs; codes stay what they are."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from hardbit.graph.onnx_graph import OnnxGraph, bits_of, mark_bits
from hardbit.graph.passes.quantize_image import PIXEL_SCALE, PIXEL_ZERO_POINT
from hardbit.graph.quantized_layers import dequantizer_of
from hardbit_deploy.errors import HardbitError

__all__ = [
    "bytes_first",
    "declared_widths",
    "eight_bit_codes",
    "explicit_parameters",
    "integer_clips",
    "without_repeated_quantizers",
]

_NARROW = ("int2", "uint2", "int4", "uint4")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def eight_bit_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which constants of 2 and 4 bits are stored in 8. Raises HardbitError naming the quantizer of
    activations that writes another type than int8 or uint8."""
    graph = OnnxGraph(model)
    for node in graph.nodes:
        zero_point = graph.operand(node, 2) if node.op_type in _QUANTIZERS else None
        if zero_point is None:
            continue
        name = zero_point.dtype.name
        if name in _NARROW and graph.is_constant(node.input[0]) and node.op_type == "DequantizeLinear":
            for index in (0, 2):
                values = graph.operand(node, index)
                if values is not None and values.dtype.name in _NARROW:
                    wide = values.astype(np.uint8 if name.startswith("u") else np.int8)
                    graph.set_input(node, index, graph.add_constant(f"{node.input[index]}.wide", wide))
        elif name not in ("int8", "uint8", "int32"):
            raise HardbitError(f"its codes are {name}", node.name, "quantize to int8 or uint8")
    return graph.to_model()


def explicit_parameters(graph: OnnxGraph) -> None:
    """Give every quantizer of activations a scalar scale and a scalar zero point of its own."""
    for node in graph.nodes:
        if node.op_type not in _QUANTIZERS or graph.is_constant(node.input[0]):
            continue
        scale, zero_point = graph.operand(node, 1), graph.operand(node, 2)
        if scale is None or scale.size != 1:
            continue
        if scale.ndim:
            graph.set_input(node, 1, graph.add_constant(f"{node.input[1]}.scalar", scale.reshape(())))
        if len(node.input) < 3 or not node.input[2]:
            graph.set_input(node, 2, graph.add_constant(f"{node.name}.zero_point", np.uint8(0)))
        elif zero_point is not None and zero_point.size == 1 and zero_point.ndim:
            graph.set_input(node, 2, graph.add_constant(f"{node.input[2]}.scalar", zero_point.reshape(())))


def declared_widths(graph: OnnxGraph) -> None:
    """Record how many bits the codes of each activation quantizer take, by its Clip, where the file does not say."""
    for dequantize in graph.nodes:
        if dequantize.op_type != "DequantizeLinear" or graph.is_constant(dequantize.input[0]):
            continue
        quantize, levels = graph.producer(dequantize.input[0]), 256
        zero_point = graph.operand(dequantize, 2)
        if quantize is not None and quantize.op_type == "Clip" and zero_point is not None:
            low, high = graph.operand(quantize, 1), graph.operand(quantize, 2)
            limits = np.iinfo(zero_point.dtype)
            lowest, highest = limits.min if low is None else low.item(), limits.max if high is None else high.item()
            levels = int(highest) - int(lowest) + 1
            quantize = graph.producer(quantize.input[0])
        for node in (quantize, dequantize):
            if node is not None and bits_of(node) is None:
                mark_bits(node, max(1, (levels - 1).bit_length()))


def bytes_first(graph: OnnxGraph) -> None:
    """Let the image pass a quantizer whose codes are its bytes, before one of the file's own scale: engines and attack
    graphs take the codes of the first quantizer for bytes. Numbers (pixel - 128) / 256 come out as they went in."""
    image = graph.inputs[0].name
    readers = graph.consumers(image)
    if not any(reader.op_type == "QuantizeLinear" for reader in readers):
        return
    if len(readers) == 1 and _codes_are_bytes(graph, readers[0]):
        return
    parameters = [
        graph.add_constant(f"{image}.pixel_scale", np.float32(PIXEL_SCALE)),
        graph.add_constant(f"{image}.pixel_zero_point", np.uint8(PIXEL_ZERO_POINT)),
    ]
    codes, numbers = graph.unused_name(f"{image}.bytes"), graph.unused_name(f"{image}.numbers")
    graph.replace_uses(image, numbers, readers)
    for operator, source, target in (("QuantizeLinear", image, codes), ("DequantizeLinear", codes, numbers)):
        name = graph.unused_node_name(f"{image}.{operator.removesuffix('Linear').lower()}")
        node = helper.make_node(operator, [source, *parameters], [target], name=name)
        mark_bits(node, 8)
        graph.insert_before(readers[0], node)


def _codes_are_bytes(graph: OnnxGraph, quantize: onnx.NodeProto) -> bool:
    scale, zero_point = graph.operand(quantize, 1), graph.operand(quantize, 2)
    if scale is None or zero_point is None or scale.size != 1 or scale.item() != PIXEL_SCALE:
        return False
    return int(zero_point.item()) == (PIXEL_ZERO_POINT if zero_point.dtype == np.uint8 else 0)


def integer_clips(graph: OnnxGraph) -> None:
    """A float Clip that one quantizer alone reads becomes a Clip of its codes, between the codes of the bounds; so does
    a Relu before a zero point that is not the least code. Rounding is monotone, so both are the same."""
    for quantize in list(graph.nodes):
        if quantize.op_type == "QuantizeLinear" and not graph.is_constant(quantize.input[0]):
            _clip_codes(graph, quantize)


def _clip_codes(graph: OnnxGraph, quantize: onnx.NodeProto) -> None:
    cut = graph.producer(quantize.input[0])
    scale, zero_point = graph.operand(quantize, 1), graph.operand(quantize, 2)
    if cut is None or scale is None or zero_point is None or scale.size != 1 or zero_point.dtype.kind not in "iu":
        return
    if graph.consumers(cut.output[0]) != [quantize] or graph.is_output(cut.output[0]):
        return
    limits = np.iinfo(zero_point.dtype)
    zero = int(zero_point.item())
    low, high = limits.min, limits.max
    if cut.op_type == "Relu" and zero not in (0, limits.min):
        low = zero
    elif cut.op_type == "Clip":
        bounds = [graph.operand(cut, index) for index in (1, 2)]
        given = [len(cut.input) > index and bool(cut.input[index]) for index in (1, 2)]
        if any(is_given and bound is None for is_given, bound in zip(given, bounds, strict=True)):
            return
        codes = [None if bound is None else _code(float(bound.item()), scale, zero_point) for bound in bounds]
        low = limits.min if codes[0] is None else codes[0]
        high = limits.max if codes[1] is None else codes[1]
    else:
        return
    graph.set_input(quantize, 0, cut.input[0])
    graph.remove(cut)
    if (low, high) != (limits.min, limits.max):
        _cut(graph, quantize, low, high, zero_point.dtype.type)


def _code(value: float, scale: np.ndarray, zero_point: np.ndarray) -> int:
    limits = np.iinfo(zero_point.dtype)
    return int(np.clip(np.rint(np.float32(value) / scale.item()) + zero_point.item(), limits.min, limits.max))


def _cut(graph: OnnxGraph, quantize: onnx.NodeProto, low: int, high: int, kind: type) -> None:
    """Clip the codes of `quantize`; a Clip that is there already is narrowed."""
    readers = graph.consumers(quantize.output[0])
    clip = readers[0] if len(readers) == 1 and readers[0].op_type == "Clip" else None
    if clip is not None:
        there = [graph.operand(clip, index) for index in (1, 2)]
        low = low if there[0] is None else int(np.clip(there[0].item(), low, high))
        high = high if there[1] is None else int(np.clip(there[1].item(), low, high))
    bounds = [
        graph.add_constant(f"{quantize.name}.{end}", kind(value)) for end, value in (("low", low), ("high", high))
    ]
    if clip is not None:
        for index, bound in enumerate(bounds):
            graph.set_input(clip, index + 1, bound)
        return
    clipped = graph.unused_name(f"{quantize.output[0]}.clipped")
    graph.replace_uses(quantize.output[0], clipped, readers)
    name = graph.unused_node_name(f"{quantize.name}.clip")
    node = helper.make_node("Clip", [quantize.output[0], *bounds], [clipped], name=name)
    graph.insert_after(quantize, node)


def without_repeated_quantizers(graph: OnnxGraph) -> None:
    """Numbers of codes, moved at most, and quantized by the same scale and zero point, are those codes again: there the
    second quantizer goes. Of several quantizers of one tensor with equal parameters one is left."""
    _merge_equal_quantizers(graph)
    for quantize in list(graph.nodes):
        if quantize.op_type != "QuantizeLinear" or graph.is_constant(quantize.input[0]):
            continue
        source = dequantizer_of(graph, quantize.input[0])
        readers = graph.consumers(quantize.output[0])
        if source is None or any(reader.op_type != "DequantizeLinear" for reader in readers):
            continue
        if all(_same(graph, quantize, other) for other in (source, *readers)):
            for reader in readers:
                if graph.is_output(reader.output[0]):
                    break
                graph.replace_uses(reader.output[0], quantize.input[0])


def _merge_equal_quantizers(graph: OnnxGraph) -> None:
    for first in list(graph.nodes):
        if first.op_type != "QuantizeLinear" or not graph.consumers(first.output[0]):
            continue
        for other in graph.consumers(first.input[0]):
            unmerged = other is not first and other.op_type == "QuantizeLinear" and graph.consumers(other.output[0])
            if unmerged and not graph.is_output(other.output[0]) and _same(graph, first, other):
                graph.replace_uses(other.output[0], first.output[0])


def _same(graph: OnnxGraph, ours: onnx.NodeProto, theirs: onnx.NodeProto) -> bool:
    for index in (1, 2):
        values = [graph.operand(node, index) for node in (ours, theirs)]
        if values[0] is None or values[1] is None or values[0].dtype != values[1].dtype:
            return False
        if values[0].size != 1 or values[1].size != 1 or values[0].item() != values[1].item():
            return False
    return True
