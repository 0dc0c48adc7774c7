"""Adjoints of MaxPool, AveragePool and GlobalAveragePool over two spatial axes, and of ReduceMean over any."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from hardbit.graph.gradient.convolution import Window, adjoint_of_correlation, spatial_window
from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import Shape, attributes
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["average_pool", "global_average_pool", "max_pool", "reduce_mean"]


def max_pool(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """The first maximum of a window, in row-major order, takes its gradient, as in torch.

    Few-bit codes tie all the time, so the rule for ties is not a detail. The positions come from MaxPool's second
    output; windows that tile the input are put back by MaxUnpool, overlapping ones by adding up scattered values.
    """
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    window = pooling_window(node, source)
    if attributes(node).get("storage_order", 0) or len(node.output) > 1:
        raise UnsupportedOperator("MaxPool with its indices in use, or in column order", where=node_label(node))
    positions = first_maxima(tape, node)
    tensor = tape.dense(cotangent, target)
    if tiles(window, source, target):
        shape = tape.emit("Shape", [node.input[0]])
        kernel = list(window.kernel)
        return [Cotangent(tape.emit("MaxUnpool", [tensor, positions, shape], kernel_shape=kernel, strides=kernel))]
    flat = tape.integers([-1])
    count = tape.emit("Reshape", [tape.emit("Size", [node.input[0]]), flat])
    zeros = tape.emit("Expand", [tape.constant(0.0), count])
    updates = [tape.emit("Reshape", [part, flat]) for part in (positions, tensor)]
    scattered = tape.emit("ScatterElements", [zeros, *updates], axis=0, reduction="add")
    return [Cotangent(tape.reshape(scattered, source))]


def first_maxima(tape: Tape, node: onnx.NodeProto) -> str:
    """MaxPool's second output, int64: flat positions of the first maximum of every window.

    Codes are pooled once more in float for it: on uint8, ONNX Runtime before 1.29 gives no position (-5, say) for a
    window of zeros. Float32 holds every code, so order and ties are the same.
    """
    if tape.graph.dtypes.get(node.input[0]) == TensorProto.FLOAT:
        return tape.further_output(node, 1)
    values = tape.emit("Cast", [node.input[0]], to=TensorProto.FLOAT)
    return tape.emit_second("MaxPool", [values], **attributes(node))


def average_pool(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    window = pooling_window(node, source)
    channels = int(source[1] or 0)
    tensor = tape.emit(
        "Mul", [tape.dense(cotangent, target), tape.constant(1 / divisors(node, window, source, target))]
    )
    if tiles(window, source, target):
        rows, columns = target[2:]
        spread = tape.reshape(tensor, (None, channels, rows, 1, columns, 1))
        tiled = tape.emit("Expand", [spread, tape.integers([1, 1, 1, window.kernel[0], 1, window.kernel[1]])])
        return [Cotangent(tape.reshape(tiled, source))]
    ones = np.ones((channels, 1, *window.kernel), np.float32)
    return [Cotangent(adjoint_of_correlation(tape, tensor, ones, window, channels, source))]


def global_average_pool(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """The same gradient for every pixel: kept at one value per channel until something makes it dense."""
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    pixels = math.prod(int(size or 0) for size in source[2:])
    tensor = tape.emit("Mul", [tape.dense(cotangent, target), tape.constant(1 / pixels)])
    return [Cotangent(tensor, spread=True)]


def reduce_mean(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """The same gradient for all that went into a mean: kept small, like that of a global average."""
    source, given = tape.graph.shape(node.input[0]), tape.graph.constant(node, 1)
    axes = set() if given is None else {int(axis) % len(source) for axis in given}
    if not axes or any(source[axis] is None for axis in axes):
        raise UnsupportedOperator("ReduceMean along the batch, or along computed axes", where=node_label(node))
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(source))
    count = math.prod(int(source[axis] or 0) for axis in axes)
    tensor = tape.dense(cotangent, tape.graph.shape(node.output[0]))
    share = tape.emit("Mul", [tape.reshape(tensor, kept), tape.constant(1 / count)])
    return [Cotangent(share, spread=True), None]


def pooling_window(node: onnx.NodeProto, source: Shape) -> Window:
    options = attributes(node)
    if options.get("ceil_mode", 0):
        raise UnsupportedOperator(f"{node.op_type} with ceil_mode", where=node_label(node))
    return spatial_window(node, source, tuple(options["kernel_shape"]))


def tiles(window: Window, source: Shape, target: Shape) -> bool:
    """Whether the windows cover the input exactly once."""
    return (
        window.strides == window.kernel
        and window.dilations == (1, 1)
        and not any(window.before + window.after)
        and all(source[axis + 2] == int(target[axis + 2] or 0) * window.kernel[axis] for axis in range(2))
    )


def divisors(node: onnx.NodeProto, window: Window, source: Shape, target: Shape) -> np.ndarray:
    """How many values each average divides by: a scalar, or (rows, columns) where padding is not counted."""
    if attributes(node).get("count_include_pad", 0) or not any(window.before + window.after):
        return np.asarray(float(math.prod(window.kernel)))
    counts = []
    for axis in range(2):
        first = np.arange(int(target[axis + 2] or 0)) * window.strides[axis] - window.before[axis]
        taps = first[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        counts.append(((taps >= 0) & (taps < int(source[axis + 2] or 0))).sum(axis=1))
    return np.outer(*counts).astype(np.float64)
