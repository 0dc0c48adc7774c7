"""Executes a lowered engine graph in integers with `hardbit_kernels.reference`: what the engine computes, on paper.

Numbers exist only as codes with a scale and a zero point, or as accumulators that wait for the next QuantizeLinear, as
they do inside an integer engine. Nothing of ONNX Runtime is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.graph.onnx_graph import OnnxGraph, attribute
from hardbit_kernels import reference


@dataclass(frozen=True)
class Dequantized:
    """Codes and what they stand for: scale * (code - zero_point)."""

    codes: NDArray
    scale: NDArray[np.float32]
    zero_point: int


@dataclass(frozen=True)
class Accumulated:
    """int32 sums of a Conv or Gemm, worth input_scale * weight_scale each; `relu` if negative numbers become 0."""

    sums: NDArray[np.int32]
    input_scale: np.float32
    weight_scale: NDArray[np.float32]
    relu: bool = False


@dataclass(frozen=True)
class Summed:
    """Two tensors of codes that the next QuantizeLinear adds."""

    a: Dequantized
    b: Dequantized
    relu: bool = False


@dataclass(frozen=True)
class Averaged:
    """Codes whose channel means the next QuantizeLinear takes."""

    x: Dequantized
    relu: bool = False


def run_engine(engine: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (n, classes) of `images` uint8 (n, channels, height, width)."""
    graph = OnnxGraph(engine)
    values: dict[str, object] = {"image": images}

    def value(name: str) -> object:
        return values[name] if name in values else graph.constant(name)

    for node in graph.nodes:
        values[node.output[0]] = _execute(node, [value(name) for name in node.input if name])
    logits = values["logits"]
    if isinstance(logits, Accumulated) and not logits.relu:
        return reference.dequantize(logits.sums, reference.output_multiplier(logits.input_scale, logits.weight_scale))
    raise NotImplementedError(f"logits are {type(logits).__name__}")


def _execute(node: onnx.NodeProto, inputs: list) -> object:
    first = inputs[0]
    match node.op_type:
        case "DequantizeLinear":
            return _dequantize(node, inputs)
        case "QuantizeLinear":
            return _quantize(first, np.float32(inputs[1].item()), inputs[2])
        case "Clip":
            return reference.clip(first, int(inputs[1]), int(inputs[2]))
        case "Flatten":
            return first.reshape(len(first), -1)
        case "MaxPool":
            return reference.max_pool(
                first, kernel=_ints(node, "kernel_shape"), strides=_ints(node, "strides"), **_window(node)
            )
        case "Relu":
            return replace(first, relu=True)
        case "Add":
            return Summed(*inputs)
        case "GlobalAveragePool":
            return Averaged(first)
        case "Conv":
            return _convolve(node, *inputs)
        case "Gemm":
            x, weight, *bias = inputs
            sums = reference.linear(x.codes, weight.codes, *[b.codes for b in bias], zero_point=x.zero_point)
            return Accumulated(sums, np.float32(x.scale.item()), weight.scale)
    raise NotImplementedError(f"{node.name}: {node.op_type}")


def _dequantize(node: onnx.NodeProto, inputs: list) -> Dequantized:
    codes, scale, zero_point = inputs
    if np.any(zero_point != zero_point.flat[0]):
        raise NotImplementedError(f"{node.name}: several zero points")
    return Dequantized(codes, scale, int(zero_point.flat[0]))


def _convolve(
    node: onnx.NodeProto, x: Dequantized, weight: Dequantized, bias: Dequantized | None = None
) -> Accumulated:
    window = _window(node)
    sums = reference.conv2d(
        x.codes,
        weight.codes,
        bias.codes if bias is not None else None,
        zero_point=x.zero_point,
        strides=_ints(node, "strides"),
        pads=window["pads"],
        dilations=window["dilations"],
        groups=attribute(node, "group", 1),
    )
    return Accumulated(sums, np.float32(x.scale.item()), weight.scale)


def _quantize(waiting: object, scale: np.float32, zero_point: NDArray) -> NDArray:
    zero, dtype = int(zero_point.item()), zero_point.dtype
    if isinstance(waiting, Accumulated):
        multiplier = reference.output_multiplier(waiting.input_scale, waiting.weight_scale, scale)
        codes = reference.requantize(waiting.sums, multiplier, zero, dtype)
    elif isinstance(waiting, Summed):
        a, b = waiting.a, waiting.b
        scales = (np.float32(a.scale.item()), np.float32(b.scale.item()), scale)
        codes = reference.add(a.codes, b.codes, scales=scales, zero_points=(a.zero_point, b.zero_point, zero))
    elif isinstance(waiting, Averaged):
        x = waiting.x
        codes = reference.average_pool_global(
            x.codes, scales=(np.float32(x.scale.item()), scale), zero_points=(x.zero_point, zero), dtype=dtype
        )
    else:
        raise NotImplementedError(f"cannot quantize {type(waiting).__name__}")
    return reference.relu_floor(codes, zero) if waiting.relu else codes


def _ints(node: onnx.NodeProto, name: str, default: tuple[int, ...] = (1, 1)) -> tuple[int, ...]:
    return tuple(attribute(node, name, default))


def _window(node: onnx.NodeProto) -> dict:
    window = {"pads": _ints(node, "pads", (0, 0, 0, 0)), "dilations": _ints(node, "dilations")}
    return window if node.op_type == "Conv" else {**window, "ceil_mode": bool(attribute(node, "ceil_mode", 0))}
