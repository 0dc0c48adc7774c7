"""The attack graph in the forms that TensorRT takes.

What differs from the graph for ONNX Runtime, and why:

- The image is int8, the byte less 128: TensorRT has no uint8 input, and no zero point but 0.
- Activation codes are int8 with zero point 0. Fewer than 256 levels are clipped in float before they are quantized:
  Clip of integers is not an operator of TensorRT.
- Masks are comparisons of floats, cast to float and multiplied in: nothing is computed on codes.
- What further outputs of LayerNormalization would give is computed once more.
- The adjoint of MaxPool compares (see `first_maximum`): there are no positions of maxima, no MaxUnpool and no
  ScatterElements that adds.
- Weights stay int8 codes behind a DequantizeLinear wherever their layer reads codes, so the forward pass runs the
  layers of the engine as the engine does. Biases are float.

The values are those of the graph for ONNX Runtime with `masks="exact"`, up to the rounding of float sums.

Boundary: forms only. What TensorRT makes of them is seen when it builds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hardbit.graph.gradient.primal import attributes
from hardbit.graph.gradient.quantization import MOVES_VALUES
from hardbit.graph.gradient.tape import Forms, Tape
from hardbit.graph.onnx_graph import OnnxGraph
from hardbit.graph.passes import FloatClips, Pass, PlainScales, SignedActivations, run_passes
from hardbit_deploy.errors import HardbitError

__all__ = ["FORMS", "forms_of", "in_tensorrt_forms", "weight_codes"]

FORMS: dict[str, Forms] = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt"}
ABSENT = frozenset({"ConvInteger", "MatMulInteger", "MaxUnpool", "QLinearConv", "QLinearMatMul"})
FIRST_OUTPUT = frozenset({"LayerNormalization", "MaxPool"})  # and no further one
INTEGERS = frozenset({TensorProto.INT8, TensorProto.UINT8})
TAKES_CODES = frozenset({"DequantizeLinear", "Flatten", "Identity", "Reshape", "Transpose"})
PASSES: tuple[Pass, ...] = (SignedActivations(), FloatClips(), PlainScales())
REMEDY = "quantize under the profile 'tensorrt'"


def forms_of(target: str) -> Forms:
    """The forms of a target's attack graph; raises HardbitError where there are none."""
    if target not in FORMS:
        raise HardbitError(
            f"there is no attack graph for the target '{target}'", where="target", remedy=f"known: {', '.join(FORMS)}"
        )
    return FORMS[target]


def weight_codes(tape: Tape) -> list[onnx.NodeProto]:
    """The nodes that make the weights of every layer whose input comes from codes, in their order."""
    graph = tape.graph
    wanted: dict[str, onnx.NodeProto] = {}

    def collect(tensor: str) -> None:
        maker = graph.folded.get(tensor)
        if maker is not None and tensor not in wanted:
            for name in maker.input:
                collect(name)
            wanted[tensor] = maker

    for node in graph.nodes:
        source = graph.producers.get(node.input[0]) if node.input else None
        while source is not None and source.op_type in MOVES_VALUES:
            source = graph.producers.get(source.input[0])
        if node.op_type in ("Conv", "Gemm", "MatMul") and source is not None and source.op_type == "DequantizeLinear":
            collect(node.input[1])
    return list(wanted.values())


def in_tensorrt_forms(attack: onnx.ModelProto) -> onnx.ModelProto:
    """The attack graph with its codes in the forms of TensorRT; `attack` is not touched.

    Raises HardbitError that names the node where a code has no such form: 8-bit unsigned activations, other zero points
    than 0 and 128, operators on codes.
    """
    graph = OnnxGraph(attack)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            require_int8_codes(graph, node)
    model = run_passes(attack, PASSES)
    for where, message in problems(model):
        raise HardbitError(message, where=where, remedy=REMEDY)
    return model


def require_int8_codes(graph: OnnxGraph, quantize: onnx.NodeProto) -> None:
    """Refuse a quantizer whose codes, less their zero point, are not those of one scale in int8."""
    scale, zero_point = graph.operand(quantize, 1), graph.operand(quantize, 2)
    if scale is None or scale.size != 1 or zero_point is None or zero_point.dtype not in (np.int8, np.uint8):
        message = "TensorRT quantizes activations by one constant scale, to 8 bits"
        raise HardbitError(message, where=quantize.name, remedy=REMEDY)
    ends, readers = np.iinfo(zero_point.dtype), graph.consumers(quantize.output[0])
    low, high = int(ends.min), int(ends.max)
    if len(readers) == 1 and readers[0].op_type == "Clip":
        bounds = [graph.operand(readers[0], position) for position in (1, 2)]
        low = low if bounds[0] is None else int(bounds[0].item())
        high = high if bounds[1] is None else int(bounds[1].item())
        readers = graph.consumers(readers[0].output[0])
    for reader in readers:
        if reader.op_type != "DequantizeLinear":
            message = f"TensorRT computes no {reader.op_type} of codes"
            raise HardbitError(message, where=reader.name, remedy=REMEDY)
    zero = int(zero_point.item())
    if not -128 <= low - zero <= high - zero <= 127:
        message = f"codes from {low - zero} to {high - zero} do not fit into int8, the only type of its activations"
        raise HardbitError(message, where=quantize.name, remedy=f"{REMEDY}: 7 bits after a Relu")


def problems(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """(node, message) of everything in the graph that has no place in TensorRT."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*typed.value_info, *typed.input, *typed.output]}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types |= {name: tensor.data_type for name, tensor in constants.items()}
    for node in model.graph.node:
        if node.op_type in ABSENT or (node.op_type in FIRST_OUTPUT and len(node.output) > 1):
            yield node.name, f"TensorRT has no {node.op_type} with these outputs"
        if node.op_type == "ScatterElements" and attributes(node).get("reduction", "none") != "none":
            yield node.name, "TensorRT scatters without adding"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
            if zero_point is not None and numpy_helper.to_array(zero_point).any():
                yield node.name, "TensorRT has no zero point but 0"
        elif node.op_type not in TAKES_CODES and any(types.get(name) in INTEGERS for name in node.input):
            yield node.name, f"TensorRT computes no {node.op_type} of codes"
