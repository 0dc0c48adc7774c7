"""Post-training quantization: from a float classifier in ONNX to a canonical graph, without training and without torch.

Boundary: takes the network as the import step left it; what an image means and where it comes from is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hardbit.graph.canonical_form import check_canonical
from hardbit.graph.onnx_graph import OnnxGraph, mark_bits, mark_float
from hardbit.graph.quantized_layers import dequantizer_of
from hardbit.ptq.numerics import (
    SIGNS,
    ActivationCodes,
    activation_codes,
    bias_codes,
    least_scale_for_bias,
    symmetric_codes,
    weight_codes,
)
from hardbit.ptq.placement import Placement, QuantizedTensor, place
from hardbit.ptq.preparation import prepare
from hardbit.ptq.ranges import Range, calibrated_ranges
from hardbit.ptq.tensor_shapes import tensor_shapes
from hardbit_deploy.errors import HardbitError

__all__ = ["CANONICAL_FORMAT", "quantize_network"]

CANONICAL_FORMAT = "canonical-1"
_WIDEST = 8
_NARROWEST = 2
_EXTREMES = np.array([0, 255], np.uint8)


def quantize_network(
    model: onnx.ModelProto,
    images: NDArray[np.uint8],
    *,
    calibration: str = "percentile",
    bits: int = 8,
    per_channel: bool = True,
    symmetric: bool = False,
) -> onnx.ModelProto:
    """The canonical graph of a float classifier, quantized by what its tensors hold on `images`.

    `model` reads `image` float32 (batch, channels, height, width), (pixel - 128) / 256, and gives `logits` (batch,
    classes), in opset 18; `images` are uint8 (n, channels, height, width). `calibration` is one of
    `ranges.CALIBRATIONS`. Activations are uint8 of `bits` (2 to 8) with a zero point, or where they are to be
    `symmetric`, as TensorRT wants them, fit int8 with zero point 0; weights are symmetric int8 of `bits`, biases int32.
    The image, averages, and the weights of the first and the last layers have 8 bits. The image's own quantizer spans
    all that bytes can be, whatever the calibration. What has no integer kernel stays in float and declares why. Raises
    HardbitError, with a node's name where there is one.
    """
    if not _NARROWEST <= bits <= _WIDEST:
        raise HardbitError(f"{bits} bits", "bits", f"give a width from {_NARROWEST} to {_WIDEST}")
    graph = OnnxGraph(prepare(model))
    prepared = graph.to_model()
    placement = place(graph, tensor_shapes(prepared))
    codes = _codes(prepared, placement, images, calibration, bits, symmetric_codes if symmetric else activation_codes)
    _apply_saturations(graph, placement)
    for tensor in placement.tensors:
        _write_quantizer(graph, tensor, codes[tensor.name])
    for node in list(graph.nodes):
        if node.name in placement.layers:
            width = _WIDEST if node.name in placement.wide else bits
            _write_parameters(graph, node, width, per_channel=per_channel)
        elif (reason := placement.float_reasons.get(node.name)) is not None:
            mark_float(node, reason)
    graph.prune()
    graph.set_metadata(
        {
            "hardbit.format": CANONICAL_FORMAT,
            "hardbit.profile": "tensorrt" if symmetric else "onnxruntime",
            "hardbit.calibration": f"{calibration}, {len(images)} images",
        }
    )
    canonical = graph.to_model()
    check_canonical(canonical)
    onnx.checker.check_model(canonical, full_check=True)
    return canonical


def _codes(
    model: onnx.ModelProto,
    placement: Placement,
    images: NDArray[np.uint8],
    calibration: str,
    bits: int,
    codes_of: Callable[[float, float, int], ActivationCodes],
) -> dict[str, ActivationCodes]:
    """The codes of every quantized tensor: of pixels by the extremes of bytes, of picked values as where they were
    picked, of signs exactly, else by calibration."""
    free = [tensor for tensor in placement.tensors if not tensor.signs and tensor.like is None]
    pixels = [tensor.name for tensor in free if tensor.of_pixels]
    others = [tensor.name for tensor in free if not tensor.of_pixels]
    extremes = np.broadcast_to(_EXTREMES[:, None, None, None], (2, *images.shape[1:]))
    ranges: dict[str, Range] = calibrated_ranges(model, others, images, calibration, 2**bits)
    if pixels:
        of_bytes = calibrated_ranges(model, pixels, np.ascontiguousarray(extremes), "max", 2**_WIDEST)
        seen = calibrated_ranges(model, pixels, images, "max", 2**_WIDEST)
        hull = {name: (min(of_bytes[name][0], seen[name][0]), max(of_bytes[name][1], seen[name][1])) for name in pixels}
        ranges.update(hull)
    found: dict[str, ActivationCodes] = {}
    for tensor in placement.tensors:
        if tensor.signs:
            found[tensor.name] = SIGNS
        elif tensor.like is not None:
            found[tensor.name] = _codes_like(tensor, placement, found)
        else:
            low, high = ranges[tensor.name]
            low, high = max(low, tensor.limits[0]), min(high, tensor.limits[1])
            found[tensor.name] = codes_of(low, high, _WIDEST if tensor.wide else bits)
    return found


def _codes_like(tensor: QuantizedTensor, placement: Placement, found: Mapping[str, ActivationCodes]) -> ActivationCodes:
    """The codes of the tensor whose values these are; it stands before this one in the graph."""
    source = next(other for other in placement.tensors if other.name == tensor.like)
    return found[source.name]


def _apply_saturations(graph: OnnxGraph, placement: Placement) -> None:
    """A Clip from 0 becomes a Relu, which the quantizer cuts off above; any other Clip goes, for codes saturate."""
    for node in list(graph.nodes):
        if node.name not in placement.saturations:
            continue
        low = graph.operand(node, 1)
        if low is not None and low.item() == 0:
            relu = helper.make_node("Relu", [node.input[0]], [node.output[0]], name=node.name)
            graph.insert_before(node, relu)
            graph.remove(node)
        else:
            before = graph.producer(node.input[0])
            result = node.output[0]
            graph.remove(node)
            if before is not None:
                graph.set_output(before, result)


def _write_quantizer(graph: OnnxGraph, tensor: QuantizedTensor, codes: ActivationCodes) -> None:
    """QuantizeLinear, integer Clip where codes do not fill their type, DequantizeLinear, for the tensor's readers."""
    producer = graph.producer(tensor.name)
    place = "image" if producer is None else f"{producer.name}.result"
    readers = [node for node in graph.consumers(tensor.name) if node.name in tensor.readers]
    source, target = tensor.name, graph.unused_name(f"{place}.numbers")
    if graph.is_output(tensor.name) and producer is not None:
        source, target = graph.unused_name(f"{place}.exact"), tensor.name
        graph.set_output(producer, source)
        for node in readers:  # they go on reading `target`
            graph.replace_uses(tensor.name, target, [node])
    else:
        graph.replace_uses(tensor.name, target, readers)
    scale = graph.add_constant(f"{place}.scale", codes.scale)
    zero_point = graph.add_constant(f"{place}.zero_point", codes.zero_point)
    written = graph.unused_name(f"{place}.codes")
    nodes = [helper.make_node("QuantizeLinear", [source, scale, zero_point], [written], name=f"{place}.quantize")]
    mark_bits(nodes[0], codes.bits)
    if not codes.fills_its_type:
        kind = codes.zero_point.dtype.type
        bounds = [graph.add_constant(f"{place}.{end}", kind(value)) for end, value in _ends(codes)]
        clipped = graph.unused_name(f"{place}.clipped")
        nodes.append(helper.make_node("Clip", [written, *bounds], [clipped], name=f"{place}.clip"))
        written = clipped
    nodes.append(
        helper.make_node("DequantizeLinear", [written, scale, zero_point], [target], name=f"{place}.dequantize")
    )
    mark_bits(nodes[-1], codes.bits)
    before = producer
    for node in nodes:
        node.name = graph.unused_node_name(node.name)
        if before is None:
            graph.insert_before(graph.nodes[0], node)
        else:
            graph.insert_after(before, node)
        before = node


def _ends(codes: ActivationCodes) -> list[tuple[str, int]]:
    return [("low", codes.low), ("high", codes.high)]


def _write_parameters(graph: OnnxGraph, node: onnx.NodeProto, bits: int, *, per_channel: bool) -> None:
    """int8 weights and an int32 bias in units of the accumulator, each behind a DequantizeLinear of axis 0."""
    dequantize = dequantizer_of(graph, node.input[0])
    input_scale = None if dequantize is None else graph.operand(dequantize, 1)
    weights = graph.operand(node, 1)
    if input_scale is None or weights is None:
        raise HardbitError("its operands are not constant weights and codes", node.name)
    bias = graph.operand(node, 2)
    values = np.zeros(len(weights), np.float32) if bias is None else bias.astype(np.float32)
    scale = np.float32(input_scale.item())
    codes = weight_codes(weights.astype(np.float32), bits, least_scale_for_bias(values, scale), per_channel=per_channel)
    graph.set_input(node, 1, _dequantized(graph, node, "weight", codes.codes, codes.scale, codes.bits))
    if bias is not None:
        graph.set_input(node, 2, _dequantized(graph, node, "bias", *bias_codes(values, scale, codes.scale), 32))


def _dequantized(
    graph: OnnxGraph,
    node: onnx.NodeProto,
    kind: str,
    codes: NDArray[np.int8] | NDArray[np.int32],
    scale: NDArray[np.float32],
    bits: int,
) -> str:
    """Write parameter codes and their DequantizeLinear before `node`; returns the tensor of numbers."""
    place = f"{node.name}.{kind}"
    inputs = [
        graph.add_constant(f"{place}.codes", codes),
        graph.add_constant(f"{place}.scale", scale),
        graph.add_constant(f"{place}.zero_point", np.zeros(len(codes), codes.dtype)),
    ]
    target = graph.unused_name(f"{place}.numbers")
    name = graph.unused_node_name(f"{place}.dequantize")
    dequantize = helper.make_node("DequantizeLinear", inputs, [target], name=name, axis=0)
    mark_bits(dequantize, bits)
    graph.insert_before(node, dequantize)
    return target
