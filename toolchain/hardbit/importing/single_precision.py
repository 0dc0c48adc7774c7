"""Networks in float64, float16 or bfloat16 -> float32, which is what engines, attacks and quantization are made for."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from hardbit_deploy.errors import HardbitError

__all__ = ["to_float32"]

_OTHERS = {TensorProto.DOUBLE: "float64", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
_TYPE_ATTRIBUTES = ("to", "dtype")


def to_float32(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy in float32, and a note for each type that was converted.

    Raises HardbitError for a float64 constant that float32 cannot hold.
    """
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    found: set[int] = set()
    graph = converted.graph
    for tensor in graph.initializer:
        _convert_tensor(tensor, found)
    for node in graph.node:
        for entry in node.attribute:
            if entry.type == AttributeProto.TENSOR:
                _convert_tensor(entry.t, found, node.name)
            elif entry.name in _TYPE_ATTRIBUTES and entry.i in _OTHERS:
                found.add(entry.i)
                entry.i = TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type.elem_type
        if kind in _OTHERS:
            found.add(kind)
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    return converted, [f"converted from {_OTHERS[kind]} to float32" for kind in sorted(found)]


def _convert_tensor(tensor: TensorProto, found: set[int], place: str = "") -> None:
    if tensor.data_type not in _OTHERS:
        return
    found.add(tensor.data_type)
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        narrowed = values.astype(np.float32)
    if not np.array_equal(np.isfinite(values.astype(np.float64)), np.isfinite(narrowed)):
        raise HardbitError(
            "a float64 constant is too large for float32", where=tensor.name or place, remedy="rescale the network"
        )
    tensor.CopyFrom(numpy_helper.from_array(narrowed, tensor.name))
