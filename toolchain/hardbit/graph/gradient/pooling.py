"""Adjoints of MaxPool, AveragePool and LpPool over one to three spatial axes, and of the global pools."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from hardbit.graph.gradient.convolution import adjoint_of_correlation
from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.first_maximum import max_pool_by_comparison
from hardbit.graph.gradient.primal import Shape, attributes
from hardbit.graph.gradient.tape import Cotangent, Tape
from hardbit.graph.gradient.windows import Window, spatial_window

__all__ = ["average_pool", "global_average_pool", "global_max_pool", "lp_pool", "max_pool"]

LEAST = 1e-30  # instead of a norm of 0, whose gradient is taken as 0


def max_pool(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """The first maximum of a window, in row-major order, takes its gradient, as in torch.

    Few-bit codes tie all the time, so the rule for ties is not a detail. The positions come from MaxPool's second
    output; windows that tile the input are put back by MaxUnpool, overlapping ones by adding up scattered values.
    """
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    if attributes(node).get("storage_order", 0) or len(node.output) > 1:
        raise UnsupportedOperator("MaxPool with its indices in use, or in column order", where=node_label(node))
    if tape.forms == "tensorrt":
        return max_pool_by_comparison(tape, node, cotangent)
    positions = first_maxima(tape, node)
    tensor = tape.dense(cotangent, target)
    window = spatial_window(node, source, tuple(attributes(node)["kernel_shape"]))
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
    window = pooling_window(node, source, target)
    tensor = tape.emit(
        "Mul", [tape.dense(cotangent, target), tape.constant(1 / divisors(node, window, source, target))]
    )
    return [Cotangent(adjoint_of_window_sums(tape, tensor, window, source, target))]


def lp_pool(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Y = (sum |X|^p)^(1/p) over a window: dX = sign(X) |X|^(p-1) times the sum of dY Y^(1-p) over its windows."""
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    window, p = pooling_window(node, source, target), attributes(node).get("p", 2)
    tensor = tape.dense(cotangent, target)
    if p > 1:
        steep = tape.emit("Pow", [node.output[0], tape.constant(p - 1.0)])
        tensor = tape.emit("Div", [tensor, tape.emit("Max", [steep, tape.constant(LEAST)])])
    summed = adjoint_of_window_sums(tape, tensor, window, source, target)
    return [Cotangent(tape.emit("Mul", [summed, signed_power(tape, node.input[0], p - 1)]))]


def signed_power(tape: Tape, tensor: str, exponent: int) -> str:
    """sign(x) |x|^exponent."""
    if exponent == 1:
        return tensor
    sign = tape.emit("Sign", [tensor])
    if exponent == 0:
        return sign
    return tape.emit("Mul", [sign, tape.emit("Pow", [tape.emit("Abs", [tensor]), tape.constant(float(exponent))])])


def adjoint_of_window_sums(tape: Tape, tensor: str, window: Window, source: Shape, target: Shape) -> str:
    """To every value (shape `source`) the sum of what `tensor` (shape `target`) holds for the windows it lies in."""
    channels = int(source[1] or 0)
    if tiles(window, source, target):
        split = [part for size in target[2:] for part in (size, 1)]
        repeats = [part for size in window.kernel for part in (1, size)]
        spread = tape.reshape(tensor, (None, channels, *split))
        return tape.reshape(tape.emit("Expand", [spread, tape.integers([1, 1, *repeats])]), source)
    ones = np.ones((channels, 1, *window.kernel), np.float32)
    return adjoint_of_correlation(tape, tensor, ones, window, channels, source)


def global_average_pool(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """The same gradient for every pixel: kept at one value per channel until something makes it dense."""
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    pixels = math.prod(int(size or 0) for size in source[2:])
    tensor = tape.emit("Mul", [tape.dense(cotangent, target), tape.constant(1 / pixels)])
    return [Cotangent(tensor, spread=True)]


def global_max_pool(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Of equal maxima each takes the same share, as torch.amax has it."""
    axes = tape.integers(list(range(2, len(tape.graph.shape(node.input[0])))))
    winners = tape.indicator((tape.emit("Equal", [node.input[0], node.output[0]]),))
    count = tape.emit("ReduceSum", [winners, axes], keepdims=1)
    part = tape.emit("Div", [tape.dense(cotangent, tape.graph.shape(node.output[0])), count])
    return [Cotangent(tape.emit("Mul", [winners, part]))]


def pooling_window(node: onnx.NodeProto, source: Shape, target: Shape) -> Window:
    """The window of an averaging pool; with `ceil_mode` its padding reaches as far as the last window does."""
    window = spatial_window(node, source, tuple(attributes(node)["kernel_shape"]))
    if not attributes(node).get("ceil_mode", 0):
        return window
    after = []
    for axis in window.axes:
        size, last = int(source[axis + 2] or 0), (int(target[axis + 2] or 0) - 1) * window.strides[axis]
        if last >= size + window.before[axis]:
            # onnx counts this window in the shape, ONNX Runtime and torch leave it out.
            raise UnsupportedOperator(f"{node.op_type} whose last window holds padding only", where=node_label(node))
        after.append(max(window.after[axis], last + window.extent(axis) - window.before[axis] - size))
    return replace(window, after=tuple(after))


def tiles(window: Window, source: Shape, target: Shape) -> bool:
    """Whether the windows cover the input exactly once."""
    return (
        window.strides == window.kernel
        and set(window.dilations) == {1}
        and not any(window.before + window.after)
        and all(source[axis + 2] == int(target[axis + 2] or 0) * window.kernel[axis] for axis in window.axes)
    )


def divisors(node: onnx.NodeProto, window: Window, source: Shape, target: Shape) -> NDArray[np.float64]:
    """How many values each average divides by: a scalar, or one for each place where windows differ.

    With `count_include_pad` the padding counts, but not what `ceil_mode` adds to it: as in torch and ONNX Runtime.
    """
    options = attributes(node)
    if not any(window.before + window.after) or (options.get("count_include_pad", 0) and not options.get("ceil_mode")):
        return np.asarray(float(math.prod(window.kernel)))
    stated = spatial_window(node, source, window.kernel)
    counts = []
    for axis in window.axes:
        first = np.arange(int(target[axis + 2] or 0)) * window.strides[axis] - window.before[axis]
        taps = first[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        ends = (0, int(source[axis + 2] or 0))
        if options.get("count_include_pad", 0):
            ends = (ends[0] - stated.before[axis], ends[1] + stated.after[axis])
        counts.append(((taps >= ends[0]) & (taps < ends[1])).sum(axis=1))
    return reduce(np.multiply.outer, counts).astype(np.float64)
