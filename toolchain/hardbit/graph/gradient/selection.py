"""Adjoints of operators that pick a part of a tensor at constant places: Slice and Gather.

The gradient goes back to where the values came from, zeros to where none did, and sums to what was picked more than
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import Shape, attributes, input_name
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["along_axis", "gather", "put_back", "slice_"]


def gather(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    source = tape.graph.shape(node.input[0])
    axis = attributes(node).get("axis", 0) % len(source)
    indices, size = tape.graph.constant(node, 1), source[axis]
    if indices is None or size is None:
        raise UnsupportedOperator("Gather along the batch, or by computed indices", where=node_label(node))
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    shape = (*source[:axis], indices.size, *source[axis + 1 :])
    places = [int(index) % size for index in indices.flatten()]
    return [Cotangent(put_back(tape, tape.reshape(tensor, shape), shape, axis, places, size)), None]


def slice_(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    source, shape = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    tensor = tape.dense(cotangent, shape)
    for axis, places in picked_places(tape, node, source).items():
        size = source[axis]
        if size is not None:
            tensor = put_back(tape, tensor, shape, axis, places, size)
            shape = (*shape[:axis], size, *shape[axis + 1 :])
    return [Cotangent(tensor), *[None] * (len(node.input) - 1)]


def picked_places(tape: Tape, node: onnx.NodeProto, source: Shape) -> dict[int, list[int]]:
    """axis -> the places that a Slice picks, in order; a slice of the batch must be all of it."""
    given = [tape.graph.constant(node, position) for position in range(1, 5)]
    if any(value is None and input_name(node, position + 1) for position, value in enumerate(given)):
        raise UnsupportedOperator("Slice between bounds that are computed", where=node_label(node))
    starts, ends = ([int(v) for v in value] if value is not None else [] for value in given[:2])
    axes = [int(v) % len(source) for v in given[2]] if given[2] is not None else list(range(len(starts)))
    steps = [int(v) for v in given[3]] if given[3] is not None else [1] * len(starts)
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = source[axis]
        if size is not None:
            found[axis] = list(range(size))[bounds(start, end, step, size)]
        elif (start, step) != (0, 1) or end < np.iinfo(np.int32).max:
            raise UnsupportedOperator("Slice of the batch", where=node_label(node))
    return found


def bounds(start: int, end: int, step: int, size: int) -> slice:
    """As Python's, but for an end before the first place of a backward slice, which Python writes as None."""
    return slice(start, None if step < 0 and end < -size else end, step)


def put_back(tape: Tape, tensor: str, shape: Shape, axis: int, places: Sequence[int], size: int) -> str:
    """A tensor of `size` along `axis` that holds, at each place, the sum of what was picked from it.

    Neighbours in their order are padded; else the axis goes through a product with a matrix of zeros and ones.
    """
    rank = len(shape)
    if places and list(places) == list(range(places[0], places[0] + len(places))):
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = places[0], size - places[-1] - 1
        return tape.emit("Pad", [tensor, tape.integers(pads), tape.constant(0.0)]) if any(pads) else tensor
    matrix = np.zeros((len(places), size), np.float32)
    matrix[np.arange(len(places)), list(places)] = 1
    return along_axis(tape, tensor, rank, axis, matrix)


def along_axis(tape: Tape, tensor: str, rank: int, axis: int, matrix: NDArray[np.float32]) -> str:
    """Each vector along one axis times a matrix (length before, length after)."""
    if axis == rank - 2:
        return tape.emit("MatMul", [tape.constant(matrix.T), tensor])
    order = [*(k for k in range(rank) if k != axis), axis]
    last = tensor if axis == rank - 1 else tape.emit("Transpose", [tensor], perm=order)
    product = tape.emit("MatMul", [last, tape.constant(matrix)])
    if axis == rank - 1:
        return product
    return tape.emit("Transpose", [product], perm=[order.index(k) for k in range(rank)])
