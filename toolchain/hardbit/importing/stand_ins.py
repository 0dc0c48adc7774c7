"""Standard operators in the place of quantized ones of other domains, of the same shapes: for whoever asks for shapes.

Boundary: values are not those of the network; a model with stand-ins is thrown away after its shapes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
from onnx import helper

from hardbit.importing.quantized_sources import QONNX_DOMAINS

__all__ = ["with_standard_shapes", "without_qonnx"]

_MICROSOFT: Mapping[str, tuple[str, Callable[[Sequence[str]], list[str]], tuple[str, ...]]] = {
    # operator -> the standard one, its inputs among those of the quantized one, and the attributes that matter
    "QGemm": ("Gemm", lambda inputs: [inputs[0], inputs[3]], ("transA", "transB")),
    "QLinearAdd": ("Add", lambda inputs: [inputs[0], inputs[3]], ()),
    "QLinearMul": ("Add", lambda inputs: [inputs[0], inputs[3]], ()),
    "QLinearAveragePool": (
        "AveragePool",
        lambda inputs: [inputs[0]],
        ("auto_pad", "ceil_mode", "kernel_shape", "pads", "strides"),
    ),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", lambda inputs: [inputs[0]], ()),
    "QLinearConcat": ("Concat", lambda inputs: list(inputs[2::3]), ("axis",)),
    "DequantizeLinear": ("Identity", lambda inputs: [inputs[0]], ()),
    "QLinearLeakyRelu": ("Identity", lambda inputs: [inputs[0]], ()),
    "QLinearSigmoid": ("Identity", lambda inputs: [inputs[0]], ()),
    "QLinearSoftmax": ("Identity", lambda inputs: [inputs[0]], ()),
    "QuantizeLinear": ("Identity", lambda inputs: [inputs[0]], ()),
}


def without_qonnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which QONNX operators, all of which keep shapes, pass their input on: ONNX Runtime can run it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.domain in QONNX_DOMAINS:
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))
    return copy


def with_standard_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of whose tensors ONNX's own inference knows the shapes, as far as quantized operators are concerned."""
    copy = without_qonnx(model)
    for node in copy.graph.node:
        if node.domain == "com.microsoft" and node.op_type in _MICROSOFT:
            operator, inputs, kept = _MICROSOFT[node.op_type]
            attributes = [entry for entry in node.attribute if entry.name in kept]
            standing = helper.make_node(operator, inputs(node.input), node.output[:1], name=node.name)
            standing.attribute.extend(attributes)
            node.CopyFrom(standing)
    return copy
