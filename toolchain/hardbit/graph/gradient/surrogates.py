"""The smooth surrogate of a quantized network: activations are clipped where they were quantized, and not rounded.

Below 4 bits the straight-through gradient often misleads: an attack that follows it calls a network robust that is not.
The network without rounding has true gradients, and what fools it often fools the network that it stands for (transfer
from a relaxed model; Athalye, Carlini and Wagner 2018, arXiv:1802.00420, on gradients through what has none).

Weights stay quantized, and so do activations of 256 levels, the image among them: rounding them hides nothing.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.onnx_graph import OnnxGraph

__all__ = ["relax_activations"]

FINE_LEVELS = 256


def relax_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which every activation quantizer of fewer than 256 levels clips and does not round.

    x -> QuantizeLinear -> Clip -> DequantizeLinear becomes Clip(x, low * scale, high * scale), low and high being the
    least and the greatest code less the zero point. Raises UnsupportedOperator where such codes are read by anything
    else than their DequantizeLinear.
    """
    graph = OnnxGraph(model)
    for quantize in list(graph.nodes):
        if quantize.op_type == "QuantizeLinear" and not graph.is_constant(quantize.input[0]):
            relax(graph, quantize)
    graph.prune()
    return graph.to_model()


def relax(graph: OnnxGraph, quantize: onnx.NodeProto) -> None:
    codes, clip = quantize.output[0], next(iter(graph.consumers(quantize.output[0])), None)
    scale, zero_point = graph.operand(quantize, 1), graph.operand(quantize, 2)
    if clip is None or clip.op_type != "Clip" or scale is None or zero_point is None:
        return  # all levels of the type
    low, high = bounds(graph, clip, zero_point.dtype)
    if high - low + 1 >= FINE_LEVELS:
        return
    dequantizers = graph.consumers(clip.output[0])
    strangers = [node for node in graph.consumers(codes) if node is not clip]
    strangers += [node for node in dequantizers if node.op_type != "DequantizeLinear"]
    if strangers or scale.size != 1:
        place = strangers[0] if strangers else quantize
        raise UnsupportedOperator(
            "the smooth surrogate needs QuantizeLinear, Clip, DequantizeLinear and nothing between",
            where=node_label(place),
        )
    ends = [(code - int(zero_point.item())) * float(scale.item()) for code in (low, high)]
    source = graph.producer(quantize.input[0])
    names = [graph.add_constant(f"{codes}.{end}", np.float32(value)) for end, value in zip("lu", ends, strict=True)]
    if ends[0] == 0 and source is not None and source.op_type == "Relu":
        names[0] = ""  # nothing lies below
    for dequantize in dequantizers:
        name = graph.unused_node_name(f"{dequantize.name}.relaxed")
        relaxed = helper.make_node("Clip", [quantize.input[0], *names], [dequantize.output[0]], name=name)
        graph.insert_before(dequantize, relaxed)
        graph.remove(dequantize)


def bounds(graph: OnnxGraph, clip: onnx.NodeProto, dtype: np.dtype[np.integer]) -> tuple[int, int]:
    """Least and greatest code that `clip` lets through."""
    limits = np.iinfo(dtype)
    low, high = graph.operand(clip, 1), graph.operand(clip, 2)
    return int(limits.min if low is None else low.item()), int(limits.max if high is None else high.item())
