"""Adjoints of operators that move or repeat values as they are: reshapes, Transpose, Concat, Split, Expand, Tile,
DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import onnx

from hardbit.graph.gradient.elementwise import sum_to_shape
from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import attributes
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["concat", "depth_to_space", "expand", "reshape", "space_to_depth", "split", "tile", "transpose"]


def reshape(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    return [Cotangent(tape.reshape(tensor, tape.graph.shape(node.input[0])))]


def transpose(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    shape = tape.graph.shape(node.output[0])
    order = list(attributes(node).get("perm", reversed(range(len(shape)))))
    back = [order.index(axis) for axis in range(len(shape))]
    return [Cotangent(tape.emit("Transpose", [tape.dense(cotangent, shape)], perm=back))]


def concat(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Each operand takes back its slice; an operand that occurs twice takes both."""
    shape = tape.graph.shape(node.output[0])
    axis = attributes(node)["axis"] % len(shape)
    tensor = tape.dense(cotangent, shape)
    shares: list[Cotangent | None] = []
    start = 0
    for name in node.input:
        size = tape.graph.shape(name)[axis]
        if size is None:
            raise UnsupportedOperator("Concat along the batch", where=node_label(node))
        bounds = [tape.integers([start]), tape.integers([start + size]), tape.integers([axis])]
        shares.append(Cotangent(tape.emit("Slice", [tensor, *bounds])) if name in tape.active else None)
        start += size
    return shares


def split(tape: Tape, node: onnx.NodeProto, cotangents: list[Cotangent | None]) -> list[Cotangent | None]:
    """The parts side by side again, with zeros for those that nobody reads."""
    axis = attributes(node).get("axis", 0) % len(tape.graph.shape(node.input[0]))
    if tape.graph.shape(node.input[0])[axis] is None:
        raise UnsupportedOperator("Split of the batch", where=node_label(node))
    parts = [
        zeros_like(tape, name) if cotangent is None else tape.dense(cotangent, tape.graph.shape(name))
        for name, cotangent in zip(node.output, cotangents, strict=True)
    ]
    return [Cotangent(tape.emit("Concat", parts, axis=axis)), None]


def zeros_like(tape: Tape, tensor: str) -> str:
    return tape.emit("Expand", [tape.constant(0.0), tape.emit("Shape", [tensor])])


def expand(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    return [Cotangent(sum_to_shape(tape, tape.dense(cotangent, target), target, source)), None]


def tile(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Each value takes the sum over its copies."""
    source, repeats = tape.graph.shape(node.input[0]), tape.graph.constant(node, 1)
    if repeats is None or any(size is None and count != 1 for size, count in zip(source, repeats, strict=True)):
        raise UnsupportedOperator("Tile along the batch, or by computed counts", where=node_label(node))
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    counts = [int(count) for count in repeats]
    if all(count == 1 for count in counts):
        return [Cotangent(tensor), None]
    parts = [part for size, count in zip(source, counts, strict=True) for part in (count, size)]
    axes = [2 * axis for axis in range(len(source))]
    summed = tape.emit("ReduceSum", [tape.reshape(tensor, tuple(parts)), tape.integers(axes)], keepdims=0)
    return [Cotangent(summed), None]


def depth_to_space(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """SpaceToDepth undoes it where depth comes first (DCR); else columns, rows and depth are moved back by hand."""
    options, tensor = attributes(node), tape.dense(cotangent, tape.graph.shape(node.output[0]))
    block = options["blocksize"]
    if options.get("mode", "DCR") == "DCR":
        return [Cotangent(tape.emit("SpaceToDepth", [tensor], blocksize=block))]
    source = tape.graph.shape(node.input[0])
    channels, rows, columns = (int(size or 0) for size in source[1:])
    split_up = tape.reshape(tensor, (source[0], channels // block**2, rows, block, columns, block))
    return [Cotangent(tape.reshape(tape.emit("Transpose", [split_up], perm=[0, 1, 3, 5, 2, 4]), source))]


def space_to_depth(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    block = attributes(node)["blocksize"]
    return [Cotangent(tape.emit("DepthToSpace", [tensor], blocksize=block, mode="DCR"))]
