"""The attack graph's own forward pass: the canonical graph in a form that ONNX Runtime runs in integers.

Everything here keeps the values of every tensor that stays:

- The image enters as bytes. A first quantizer of 8 bits is the identity on them, so it goes; pixel and code differ by
  a constant only.
- Signed activation codes become unsigned with the zero point raised by 128: the form of ONNX Runtime's kernels.
- DequantizeLinear moves behind operators that only choose or move values, so that these work on bytes.
- Layers with float weights that read codes are kept from being quantized by the runtime (`KeepFloatWeights`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import PrimalGraph, index_graph
from hardbit.graph.gradient.quantization import MOVES_VALUES, code_range
from hardbit.graph.gradient.tape import Forms
from hardbit.graph.passes import KeepFloatWeights
from hardbit_deploy.errors import HardbitError

__all__ = ["BytesInput", "forward_from_bytes"]

PIXEL_SCALE = 1 / 256  # of networks whose first operator is no 8-bit quantizer
PIXEL_ZERO_POINT = 128


@dataclass(frozen=True)
class BytesInput:
    """The network's float input as a function of a byte: (pixel - zero_point) * scale."""

    scale: float
    zero_point: int


def forward_from_bytes(canonical: onnx.ModelProto, forms: Forms = "onnxruntime") -> tuple[onnx.ModelProto, str]:
    """The model with a uint8 input of the same name, and the name of the float tensor that was the network's input.

    For TensorRT the input is int8, the byte less 128, and everything else stays as it is.
    """
    model = onnx.ModelProto()
    model.CopyFrom(canonical)
    del model.graph.value_info[:]
    if forms == "tensorrt":
        return model, enter_bytes(model, signed=True)
    raise_signed_codes(model)
    pixels = enter_bytes(model)
    delay_dequantize(model, keep=pixels)
    return KeepFloatWeights().apply(model), pixels


def raise_signed_codes(model: onnx.ModelProto) -> None:
    """int8 activations to uint8, zero point and Clip bounds raised by 128."""
    graph = index_graph(model)
    signed = {
        node.output[0]
        for node in graph.nodes
        if node.op_type == "QuantizeLinear" and graph.dtypes.get(node.output[0]) == TensorProto.INT8
    }
    for node in graph.nodes:  # codes stay codes through a Clip and through what moves values
        if node.op_type in MOVES_VALUES | {"Clip"} and node.input[0] in signed:
            signed.add(node.output[0])
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in signed:
            raise_inputs(model, graph, node, [2])
        elif node.op_type == "Clip" and node.input[0] in signed:
            raise_inputs(model, graph, node, [1, 2])
        elif node.op_type == "DequantizeLinear" and node.input[0] in signed:
            raise_inputs(model, graph, node, [2])


def raise_inputs(model: onnx.ModelProto, graph: PrimalGraph, node: onnx.NodeProto, positions: list[int]) -> None:
    for position in positions:
        name = node.input[position] if position < len(node.input) else ""
        if name and name not in graph.constants:
            raise UnsupportedOperator(
                f"{node.op_type} of activation codes by a value computed at run time", where=node_label(node)
            )
        old = graph.constants[name] if name else np.zeros((), np.int8)
        if not name and node.op_type == "Clip":
            continue
        raised = f"{name or node.output[0] + '.zero_point'}.unsigned"
        if not any(tensor.name == raised for tensor in model.graph.initializer):
            value = (old.astype(np.int16) + 128).astype(np.uint8)
            model.graph.initializer.append(numpy_helper.from_array(value, raised))
        if position < len(node.input):
            node.input[position] = raised
        else:
            node.input.append(raised)


def enter_bytes(model: onnx.ModelProto, *, signed: bool = False) -> str:
    """Replace the float input by bytes of the same name, `signed` ones less 128; returns the name of the float tensor
    made of them."""
    graph = index_graph(model)
    if len(graph.inputs) != 1 or graph.dtypes[graph.inputs[0]] != TensorProto.FLOAT:
        raise HardbitError(
            f"an attack needs a network with one float32 input, the image; this one has {', '.join(graph.inputs)}",
            where="graph inputs",
        )
    image = graph.inputs[0]
    entry, identity = byte_entry(graph, image)
    replaced = {name for node in identity for name in node.output} | {image}
    pixels = f"{image}.float"
    nodes = [node for node in model.graph.node if node.output[0] not in replaced]
    for node in nodes:
        node.input[:] = [pixels if name in replaced else name for name in node.input]
    scale = numpy_helper.from_array(np.float32(entry.scale), f"{image}.pixel_scale")
    zero = np.int8(entry.zero_point - 128) if signed else np.uint8(entry.zero_point)
    zero_point = numpy_helper.from_array(zero, f"{image}.pixel_zero_point")
    inputs = [image, scale.name, zero_point.name]
    nodes.insert(0, helper.make_node("DequantizeLinear", inputs, [pixels], name=f"{image}.dequantize"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([scale, zero_point])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8 if signed else TensorProto.UINT8
    return pixels


def byte_entry(graph: PrimalGraph, image: str) -> tuple[BytesInput, list[onnx.NodeProto]]:
    """How bytes become the input, and the first quantizer's nodes where they are the identity on bytes."""
    default: tuple[BytesInput, list[onnx.NodeProto]] = BytesInput(PIXEL_SCALE, PIXEL_ZERO_POINT), []
    readers = graph.consumers.get(image, [])
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return default
    scale, zero_point = graph.constant(readers[0], 1), graph.constant(readers[0], 2)
    dequantizers = graph.consumers.get(readers[0].output[0], [])
    codes = code_range(graph, readers[0])
    if scale is None or scale.size != 1 or zero_point is None or codes not in ((0, 255), (-128, 127)):
        return default
    entry = BytesInput(float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]) - int(codes[0]))
    if any(node.op_type != "DequantizeLinear" for node in dequantizers):
        return entry, []
    return entry, [readers[0], *dequantizers]


def delay_dequantize(model: onnx.ModelProto, keep: str) -> None:
    """DequantizeLinear -> op becomes op -> DequantizeLinear, for operators that only move values.

    The tensor `keep` stays as it is: the gradient is taken with respect to it.
    """
    constants = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    dequantizers: dict[str, onnx.NodeProto] = {}
    nodes = []
    for node in model.graph.node:
        source = dequantizers.get(node.input[0]) if node.input else None
        if node.op_type not in MOVES_VALUES or source is None or len(node.output) > 1:
            nodes.append(node)
            of_codes = node.op_type == "DequantizeLinear" and node.input[0] not in constants
            # A scale for each channel would have to move with its axis.
            if of_codes and constants.get(node.input[1]) == 1 and node.output[0] != keep:
                dequantizers[node.output[0]] = node
            continue
        after = onnx.NodeProto()
        after.CopyFrom(source)
        after.name = f"{node.name}.dequantize"
        after.input[0], after.output[0] = f"{node.output[0]}.codes", node.output[0]
        node.input[0], node.output[0] = source.input[0], after.input[0]
        dequantizers[after.output[0]] = after
        nodes += [node, after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
