"""The adjoint of MaxPool by comparison: for runtimes that give no positions of the maxima.

Each place of the window is read as a strided slice and compared with the pooled value; of equal maxima the first in
row-major order takes the gradient, as MaxPool's second output and torch have it. Few-bit codes tie all the time, so the
rule for ties is not a detail, and ArgMax leaves it to the runtime.

Boundary: float values only; over one to three spatial axes of any stride, dilation and padding.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from hardbit.graph.gradient.primal import Shape, attributes
from hardbit.graph.gradient.tape import Cotangent, Tape
from hardbit.graph.gradient.windows import Window, spatial_window

__all__ = ["max_pool_by_comparison"]

NEVER_GREATEST = float(np.finfo(np.float32).min)  # what padding holds


def max_pool_by_comparison(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Cotangent of the input of a MaxPool of floats, (batch, channels, *spatial)."""
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    window = spatial_window(node, source, tuple(attributes(node)["kernel_shape"]))
    ends = [reach(window, axis, target) - window.before[axis] - int(source[axis + 2] or 0) for axis in window.axes]
    after = [max(end, 0) for end in ends]
    values = padded(tape, node.input[0], window, after)
    tensor, one = tape.dense(cotangent, target), tape.constant(1.0)
    parts: list[str] = []
    taken = ""
    for place in np.ndindex(*window.kernel):
        wins = tape.indicator((tape.emit("Equal", [tap(tape, values, window, place, target), node.output[0]]),))
        if taken:
            wins = tape.emit("Mul", [wins, tape.emit("Sub", [one, taken])])
        taken = tape.emit("Add", [taken, wins]) if taken else wins
        parts.append(tape.emit("Mul", [tensor, wins]))
    return [Cotangent(put_back(tape, parts, window, after, source, target))]


def reach(window: Window, axis: int, target: Shape) -> int:
    """Places from the first of the first window to the last of the last one."""
    return (int(target[axis + 2] or 0) - 1) * window.strides[axis] + window.extent(axis)


def padded(tape: Tape, tensor: str, window: Window, after: list[int]) -> str:
    if not any([*window.before, *after]):
        return tensor
    amounts = tape.integers([0, 0, *window.before, 0, 0, *after])
    return tape.emit("Pad", [tensor, amounts, tape.constant(NEVER_GREATEST)], mode="constant")


def tap(tape: Tape, values: str, window: Window, place: tuple[int, ...], target: Shape) -> str:
    """What every window holds at one of its places: of the shape `target`."""
    first = [window.dilations[axis] * place[axis] for axis in window.axes]
    last = [first[axis] + (int(target[axis + 2] or 0) - 1) * window.strides[axis] + 1 for axis in window.axes]
    axes = [axis + 2 for axis in window.axes]
    return tape.emit("Slice", [values, *(tape.integers(part) for part in (first, last, axes, list(window.strides)))])


def put_back(tape: Tape, parts: list[str], window: Window, after: list[int], source: Shape, target: Shape) -> str:
    """The sum of the parts, (batch, channels, *target) for each place of the window, where their places lie."""
    channels, places, rank = int(source[1] or 0), len(parts), len(window.kernel)
    single = [tape.reshape(part, (None, channels, 1, *target[2:])) for part in parts]
    stacked = tape.emit("Concat", single, axis=2) if places > 1 else single[0]
    if tiles(window, source, target):
        apart = tape.reshape(stacked, (None, channels, *window.kernel, *target[2:]))
        order = [0, 1, *(place for axis in window.axes for place in (2 + rank + axis, 2 + axis))]
        return tape.reshape(tape.emit("Transpose", [apart], perm=order), source)
    weights = np.zeros((channels, places, math.prod(window.kernel)), np.float32)
    weights[:, range(places), range(places)] = 1
    left_out = [
        int(source[axis + 2] or 0) + window.before[axis] + after[axis] - reach(window, axis, target)
        for axis in window.axes
    ]
    return tape.emit(
        "ConvTranspose",
        [
            tape.reshape(stacked, (None, channels * places, *target[2:])),
            tape.constant(weights.reshape(channels * places, 1, *window.kernel)),
        ],
        kernel_shape=list(window.kernel),
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=[*window.before, *after],
        output_padding=left_out,
        group=channels,
    )


def tiles(window: Window, source: Shape, target: Shape) -> bool:
    """Whether the windows cover the input exactly once."""
    return (
        window.strides == window.kernel
        and set(window.dilations) == {1}
        and not any(window.before)
        and all(source[axis + 2] == int(target[axis + 2] or 0) * window.kernel[axis] for axis in window.axes)
    )
