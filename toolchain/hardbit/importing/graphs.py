"""The graphs of a bundle made from an imported network: canonical, engine, attack, and the float network's own two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hardbit.graph.onnx_graph import OnnxGraph, bits_of
from hardbit.importing.network import ImportedNetwork
from hardbit.importing.request import ConversionRequest
from hardbit.importing.words import IMAGE
from hardbit_deploy.network_bits import NetworkBits

__all__ = ["Graphs", "build_graphs", "float_bytes_graph", "network_bits"]


@dataclass(frozen=True)
class Graphs:
    """`canonical` is lowered to `engine`, with the `changes` of values that this took; `attack` and, below 4 bits,
    `smooth` are made of it. `float_attack` is made of the float network; None where there is none."""

    canonical: onnx.ModelProto
    engine: onnx.ModelProto
    attack: onnx.ModelProto
    smooth: onnx.ModelProto | None
    float_attack: onnx.ModelProto | None
    bits: NetworkBits
    changes: tuple[str, ...]


def build_graphs(imported: ImportedNetwork, images: NDArray[np.uint8], request: ConversionRequest) -> Graphs:
    """Quantize with calibration `images`, uint8 (n, channels, height, width), or take a quantized source as it is.

    Raises HardbitError naming the node for what has no gradient rule, no canonical form, or no engine.
    """
    from hardbit.graph.gradient import build_attack_graph
    from hardbit.ptq import canonical_from_quantized, quantize_network
    from hardbit.targets import lower

    float_attack = None
    if imported.quantized:
        canonical = canonical_from_quantized(imported.model)
    else:
        float_attack = build_attack_graph(imported.model, **_sign(imported.model, request))
        canonical = quantize_network(imported.model, images, calibration=request.calibration, bits=request.bits)
    changes: list[str] = []
    engine = lower(canonical, request.target, changes.append)
    attack = build_attack_graph(canonical, **_sign(canonical, request))
    bits = network_bits(canonical)
    smooth = None
    if bits.need_both_surrogates:
        smooth = build_attack_graph(canonical, surrogate="smooth", **_sign(canonical, request))
    return Graphs(canonical, engine, attack, smooth, float_attack, bits, tuple(changes))


def _sign(model: onnx.ModelProto, request: ConversionRequest) -> dict[str, Any]:
    """How derivatives pass a Sign, where there is one."""
    return {"sign": request.sign} if any(node.op_type == "Sign" for node in model.graph.node) else {}


def network_bits(canonical: onnx.ModelProto) -> NetworkBits:
    """The fewest bits of weights and of activations in a canonical graph; a Sign counts as an activation of one bit."""
    graph = OnnxGraph(canonical)
    weights, activations = [8], [8]
    for node in graph.nodes:
        if node.op_type == "Sign":
            activations.append(1)
        elif node.op_type == "DequantizeLinear" and bits_of(node) is not None:
            codes = graph.constant(node.input[0])
            if codes is None:
                activations.append(bits_of(node) or 8)
            elif codes.ndim > 1:
                weights.append(bits_of(node) or 8)
    return NetworkBits(weights=min(weights), activations=min(activations))


def float_bytes_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float network as an engine graph: input `image` uint8, computed in float32 throughout."""
    graph = OnnxGraph(model)
    names = [graph.unused_name(f"{IMAGE}.{word}") for word in ("float", "centred", "input")]
    pixels, centred, entry = names
    graph.replace_uses(IMAGE, entry)
    engine = graph.to_model()
    engine.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    zero, scale = f"{entry}.zero_point", f"{entry}.scale"
    engine.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(128), zero), numpy_helper.from_array(np.float32(1 / 256), scale)]
    )
    nodes = [
        helper.make_node("Cast", [IMAGE], [pixels], name=pixels, to=TensorProto.FLOAT),
        helper.make_node("Sub", [pixels, zero], [centred], name=centred),
        helper.make_node("Mul", [centred, scale], [entry], name=entry),
    ]
    for node in reversed(nodes):
        engine.graph.node.insert(0, node)
    return engine
