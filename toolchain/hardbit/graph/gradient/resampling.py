"""Adjoints of Pad and Resize, which are linear along each axis by itself: a matrix for each axis, transposed.

The matrix of a padding by reflection or of the edge says which value a place copies. That of Resize is what the
operator's definition in onnx makes of unit vectors, so every coordinate transformation, rounding, cubic coefficient and
anti-aliasing is covered by one rule.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import Shape, attributes, input_name
from hardbit.graph.gradient.selection import along_axis, put_back
from hardbit.graph.gradient.tape import OPSET, Cotangent, Tape

__all__ = ["pad", "resize"]


def pad(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    tape.require_constant(node, 2, "constant value")
    paddings = axis_paddings(tape, node, source)
    tensor, mode = tape.dense(cotangent, target), attributes(node).get("mode", "constant")
    if mode == "constant":
        return [Cotangent(cropped(tape, tensor, source, paddings)), *[None] * (len(node.input) - 1)]
    shape = target
    for axis, (before, after) in paddings.items():
        size = int(source[axis] or 0)
        if min(before, after) < 0:
            raise UnsupportedOperator(f"Pad that crops in mode {mode}", where=node_label(node))
        places = np.pad(np.arange(size), (before, after), mode=cast(Any, mode))
        tensor = put_back(tape, tensor, shape, axis, [int(place) for place in places], size)
        shape = (*shape[:axis], size, *shape[axis + 1 :])
    return [Cotangent(tensor), *[None] * (len(node.input) - 1)]


def axis_paddings(tape: Tape, node: onnx.NodeProto, source: Shape) -> dict[int, tuple[int, int]]:
    """axis -> values added before and after, for the axes where some are."""
    pads, given = tape.graph.constant(node, 1), tape.graph.constant(node, 3)
    if pads is None or (given is None and input_name(node, 3)):
        raise UnsupportedOperator("Pad by computed amounts", where=node_label(node))
    axes = range(len(source)) if given is None else [int(axis) % len(source) for axis in given]
    count = len(axes)
    found = {axis: (int(pads[k]), int(pads[k + count])) for k, axis in enumerate(axes) if pads[k] or pads[k + count]}
    if any(source[axis] is None for axis in found):
        raise UnsupportedOperator("Pad of the batch", where=node_label(node))
    return found


def cropped(tape: Tape, tensor: str, source: Shape, paddings: dict[int, tuple[int, int]]) -> str:
    """What a padding with a constant added is cut off, and what a negative one cut off is filled with zeros."""
    cuts = {axis: (max(before, 0), max(after, 0)) for axis, (before, after) in paddings.items()}
    cuts = {axis: ends for axis, ends in cuts.items() if any(ends)}
    if cuts:
        last = np.iinfo(np.int32).max
        starts = tape.integers([before for before, _ in cuts.values()])
        ends = tape.integers([-after if after else last for _, after in cuts.values()])
        tensor = tape.emit("Slice", [tensor, starts, ends, tape.integers(list(cuts))])
    fills = [0] * (2 * len(source))
    for axis, (before, after) in paddings.items():
        fills[axis], fills[axis + len(source)] = max(-before, 0), max(-after, 0)
    return tape.emit("Pad", [tensor, tape.integers(fills), tape.constant(0.0)]) if any(fills) else tensor


def resize(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    options = attributes(node)
    scales = tape.graph.constant(node, 2)
    if options.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise UnsupportedOperator("Resize of a region of interest", where=node_label(node))
    if options.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedOperator("Resize that keeps the ratio of the sides", where=node_label(node))
    if scales is None and input_name(node, 2):
        raise UnsupportedOperator("Resize by computed scales", where=node_label(node))
    axes = [axis % len(source) for axis in options.get("axes", range(len(source)))]
    tensor = tape.dense(cotangent, target)
    for position, axis in enumerate(axes):
        size, goal = source[axis], target[axis]
        scale = float(scales[position]) if scales is not None and scales.size else None
        if size is None or goal is None:
            if size != goal or scale not in (None, 1.0):
                raise UnsupportedOperator("Resize of the batch", where=node_label(node))
        elif goal != size or scale not in (None, 1.0):
            matrix = resize_matrix(node, size, goal, scale)
            tensor = along_axis(tape, tensor, len(source), axis, matrix)
    return [Cotangent(tensor), *[None] * (len(node.input) - 1)]


def resize_matrix(node: onnx.NodeProto, size: int, goal: int, scale: float | None) -> NDArray[np.float32]:
    """(goal, size): what the operator, along one axis, makes of unit vectors."""
    policies = ("axes", "keep_aspect_ratio_policy")
    along = onnx.NodeProto(op_type="Resize", output=["y"])
    along.attribute.extend(attribute for attribute in node.attribute if attribute.name not in policies)
    along.input.extend(["x", "", "scales"] if scale is not None else ["x", "", "", "sizes"])
    constants = [
        helper.make_tensor("scales", TensorProto.FLOAT, [2], [1.0, scale or 1.0]),
        helper.make_tensor("sizes", TensorProto.INT64, [2], [size, goal]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, goal])
    graph = helper.make_graph([along], "resize", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    (rows,) = ReferenceEvaluator(model).run(None, {"x": np.eye(size, dtype=np.float32)})
    return np.ascontiguousarray(np.asarray(rows, np.float32).T)
