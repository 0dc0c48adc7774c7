"""The graphs of a bundle made from an imported network: canonical, engine, attack, and the float network's own two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hardbit.graph.onnx_graph import OnnxGraph, bits_of
from hardbit.importing.images import ConversionImages
from hardbit.importing.network import ImportedNetwork
from hardbit.importing.request import ConversionRequest
from hardbit.importing.sign_surrogate import SIGNS, has_sign, stronger_sign
from hardbit.importing.words import IMAGE
from hardbit_deploy.attacks import ThreatModel
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.network_bits import NetworkBits

__all__ = ["HERE", "Graphs", "build_graphs", "float_bytes_graph", "network_bits"]

HERE = "onnxruntime"  # the target whose graphs this machine runs itself


@dataclass(frozen=True)
class Graphs:
    """`canonical` is lowered to `engine`, with the `changes` of values that this took; `attack` and, below 4 bits,
    `smooth` are made of it for the target, and `attack_here` for ONNX Runtime, which runs on this machine whatever the
    target. `float_attack` is made of the float network; None where there is none. `signs_standing` is what
    `stronger_sign` found, where it was asked."""

    canonical: onnx.ModelProto
    engine: onnx.ModelProto
    attack: onnx.ModelProto
    attack_here: onnx.ModelProto
    smooth: onnx.ModelProto | None
    float_attack: onnx.ModelProto | None
    bits: NetworkBits
    changes: tuple[str, ...]
    signs_standing: dict[str, int] | None


def build_graphs(imported: ImportedNetwork, images: ConversionImages, request: ConversionRequest) -> Graphs:
    """Quantize with the calibration images, or take a quantized source as it is.

    Raises HardbitError naming the nodes for what has no gradient rule, no canonical form, or no engine.
    """
    from hardbit.graph.gradient import build_attack_graph
    from hardbit.ptq import canonical_from_quantized, quantize_network
    from hardbit.targets import lower

    if imported.quantized:
        canonical = canonical_from_quantized(imported.model)
    else:
        _require_rules(imported.model)
        canonical = quantize_network(
            imported.model,
            images.calibration,
            calibration=request.calibration,
            bits=request.bits,
            symmetric=request.target != HERE,
        )
    _require_rules(canonical)
    changes: list[str] = []
    engine = lower(canonical, request.target, changes.append)
    sign, standing = _sign(canonical, images, request)
    through: Any = {"straight_through": sign}
    bits = network_bits(canonical)
    smooth = float_attack = None
    if bits.need_both_surrogates:
        smooth = build_attack_graph(canonical, surrogate="smooth", target=request.target, **through)
    if not imported.quantized:
        float_attack = build_attack_graph(imported.model, **through)
    attack = build_attack_graph(canonical, target=request.target, **through)
    return Graphs(
        canonical,
        engine,
        attack,
        attack if request.target == HERE else build_attack_graph(canonical, **through),
        smooth,
        float_attack,
        bits,
        tuple(changes),
        standing,
    )


def _require_rules(model: onnx.ModelProto) -> None:
    """Raise HardbitError where the network cannot be attacked white-box: it names every node that has no rule."""
    from hardbit.graph.gradient import coverage

    missing = [row for row in coverage(model) if row.status == "missing"]
    if missing:
        names = ", ".join(f"'{row.name}' ({row.operator})" for row in missing[:3])
        raise HardbitError(
            f"{len(missing)} of {len(model.graph.node)} nodes have no gradient rule, so nothing could attack it: "
            f"{names}{', ...' if len(missing) > 3 else ''}: {missing[0].reason}",
            where=missing[0].name,
            remedy="hardbit doctor --onnx FILE lists all nodes",
        )


def _sign(
    canonical: onnx.ModelProto, images: ConversionImages, request: ConversionRequest
) -> tuple[str, dict[str, int] | None]:
    """How derivatives pass a Sign, and what was found where that was tried out."""
    if request.sign != "auto" or not has_sign(canonical):
        return (SIGNS[0] if request.sign == "auto" else request.sign), None
    judged, threat = images.evaluation, ThreatModel.of(request.norm, request.eps_255)
    classes = canonical.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return stronger_sign(canonical, judged.images, judged.labels, classes, threat)


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
