"""Adjoint of Conv with constant weights, for any stride, dilation, group and asymmetric padding in two dimensions.

Two forms, chosen by speed in ONNX Runtime: at stride 1 a Conv with the kernel flipped and its channels exchanged,
folded offline, which runs in the same blocked kernels as the forward pass; else ConvTranspose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import Shape, attributes
from hardbit.graph.gradient.tape import Cotangent, Tape

__all__ = ["Window", "adjoint_of_correlation", "conv", "spatial_window"]

MIN_BLOCKED_CHANNELS = 16  # below, ONNX Runtime runs a Conv unblocked, and ConvTranspose is faster


@dataclass(frozen=True)
class Window:
    """A sliding window over two spatial axes; `before` and `after` are the paddings (rows, columns)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    def extent(self, axis: int) -> int:
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1


def conv(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    weights = tape.graph.constant(node, 1)
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    if weights is None:
        raise UnsupportedOperator("Conv whose weights are not constant", where=node_label(node))
    window = spatial_window(node, source, weights.shape[2:])
    tensor = tape.dense(cotangent, target)
    group = attributes(node).get("group", 1)
    return [Cotangent(adjoint_of_correlation(tape, tensor, weights, window, group, source)), None, None]


def spatial_window(node: onnx.NodeProto, source: Shape, kernel: tuple[int, ...]) -> Window:
    """The window of a Conv or a pooling node, with `auto_pad` resolved; refuses other than two spatial axes."""
    if len(source) != 4 or len(kernel) != 2 or source[2] is None or source[3] is None:
        raise UnsupportedOperator(f"{node.op_type} over other than two spatial axes", where=node_label(node))
    options = attributes(node)
    strides = tuple(options.get("strides", (1, 1)))
    dilations = tuple(options.get("dilations", (1, 1)))
    pads = list(options.get("pads", (0, 0, 0, 0)))
    mode = options.get("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        for axis, size in enumerate((source[2], source[3])):
            outputs = -(-size // strides[axis])
            span = (outputs - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
            padding = max(span - size, 0)
            smaller, larger = padding // 2, padding - padding // 2
            pads[axis], pads[axis + 2] = (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)
    elif mode == "VALID":
        pads = [0, 0, 0, 0]
    return Window((kernel[0], kernel[1]), strides, dilations, (pads[0], pads[1]), (pads[2], pads[3]))


def adjoint_of_correlation(
    tape: Tape,
    tensor: str,
    weights: NDArray[Any],
    window: Window,
    group: int,
    source: Shape,
) -> str:
    """Cotangent of the input (shape `source`) of a correlation with `weights` (out, in / group, rows, columns)."""
    before = [window.extent(axis) - 1 - window.before[axis] for axis in range(2)]
    after = [window.extent(axis) - 1 - window.after[axis] for axis in range(2)]
    kernel = {"kernel_shape": list(window.kernel), "dilations": list(window.dilations), "group": group}
    blocked = (source[1] or 0) // group >= MIN_BLOCKED_CHANNELS
    if window.strides == (1, 1) and min(before + after) >= 0 and blocked:
        flipped = tape.constant(exchange_channels(weights, group)[:, :, ::-1, ::-1])
        return tape.emit("Conv", [tensor, flipped], pads=before + after, **kernel)
    unreached = [beyond_last_window(window, axis, int(source[axis + 2] or 0)) for axis in range(2)]
    return tape.emit(
        "ConvTranspose",
        [tensor, tape.constant(weights)],
        strides=list(window.strides),
        pads=[*window.before, *window.after],
        output_padding=unreached,
        **kernel,
    )


def beyond_last_window(window: Window, axis: int, size: int) -> int:
    """Inputs (padding included) behind the last window, which the stride did not reach."""
    return (size + window.before[axis] + window.after[axis] - window.extent(axis)) % window.strides[axis]


def exchange_channels(weights: NDArray[Any], group: int) -> NDArray[Any]:
    """(out, in / group, ...) to (in, out / group, ...)."""
    outputs, inputs, *kernel = weights.shape
    grouped = weights.reshape(group, outputs // group, inputs, *kernel)
    return grouped.swapaxes(1, 2).reshape(group * inputs, outputs // group, *kernel)
