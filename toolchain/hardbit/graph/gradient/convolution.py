"""Adjoints of Conv and ConvTranspose with constant weights: any stride, dilation, group and asymmetric padding.

That of Conv has two forms, chosen by speed in ONNX Runtime: at stride 1 a Conv with the kernel flipped and its channels
exchanged, folded offline, which runs in the same blocked kernels as the forward pass; else ConvTranspose. That of
ConvTranspose is the Conv with the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import Shape, attributes
from hardbit.graph.gradient.tape import Cotangent, Tape
from hardbit.graph.gradient.windows import Window, spatial_window

__all__ = ["adjoint_of_correlation", "conv", "conv_transpose"]

MIN_BLOCKED_CHANNELS = 16  # below, ONNX Runtime runs a Conv unblocked, and ConvTranspose is faster


def conv(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    weights = constant_weights(tape, node)
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    window = spatial_window(node, source, weights.shape[2:])
    tensor = tape.dense(cotangent, target)
    group = attributes(node).get("group", 1)
    return [Cotangent(adjoint_of_correlation(tape, tensor, weights, window, group, source)), None, None]


def conv_transpose(tape: Tape, node: onnx.NodeProto, cotangent: Cotangent) -> list[Cotangent | None]:
    """Its windows slide over the output: the paddings are what it crops, the outputs that no window reaches are 0."""
    weights = constant_weights(tape, node)
    source, target = tape.graph.shape(node.input[0]), tape.graph.shape(node.output[0])
    window = cropping_window(node, source, target, weights.shape[2:])
    counts = [int(size or 0) for size in source[2:]]
    reach = [(counts[axis] - 1) * window.strides[axis] + window.extent(axis) for axis in window.axes]
    ends = [reach[axis] - window.before[axis] - int(target[axis + 2] or 0) for axis in window.axes]
    tensor = tape.dense(cotangent, target)
    if min(ends) < 0:
        kept = [min(0, end) + int(size or 0) for end, size in zip(ends, target[2:], strict=True)]
        axes = [axis + 2 for axis in window.axes]
        tensor = tape.emit("Slice", [tensor, tape.integers([0] * len(axes)), tape.integers(kept), tape.integers(axes)])
    share = tape.emit(
        "Conv",
        [tensor, tape.constant(weights)],
        kernel_shape=list(window.kernel),
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=[*window.before, *(max(end, 0) for end in ends)],
        group=attributes(node).get("group", 1),
    )
    return [Cotangent(share), None, None]


def cropping_window(node: onnx.NodeProto, source: Shape, target: Shape, kernel: tuple[int, ...]) -> Window:
    """The window of a ConvTranspose over its output; `before` is how much of the full output is cropped in front."""
    bare = onnx.NodeProto()
    bare.CopyFrom(node)
    del bare.attribute[:]
    bare.attribute.extend(a for a in node.attribute if a.name in ("strides", "dilations", "pads"))
    window = spatial_window(bare, source, kernel)
    options = attributes(node)
    mode = options.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return replace(window, before=tuple(0 for _ in window.axes))
    if not mode.startswith("SAME") and "output_shape" not in options:
        return window
    padding = options.get("output_padding", [0] * len(kernel))
    before = []
    for axis in window.axes:
        count, size = int(source[axis + 2] or 0), int(target[axis + 2] or 0)
        total = (count - 1) * window.strides[axis] + padding[axis] + window.extent(axis) - size
        if total < 0:
            raise UnsupportedOperator("ConvTranspose to more than its windows cover", where=node_label(node))
        before.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return replace(window, before=tuple(before))


def adjoint_of_correlation(
    tape: Tape,
    tensor: str,
    weights: NDArray[Any],
    window: Window,
    group: int,
    source: Shape,
) -> str:
    """Cotangent of the input (shape `source`) of a correlation with `weights` (out, in / group, *kernel)."""
    before = [window.extent(axis) - 1 - window.before[axis] for axis in window.axes]
    after = [window.extent(axis) - 1 - window.after[axis] for axis in window.axes]
    kernel = {"kernel_shape": list(window.kernel), "dilations": list(window.dilations), "group": group}
    blocked = (source[1] or 0) // group >= MIN_BLOCKED_CHANNELS
    if set(window.strides) == {1} and min(before + after) >= 0 and blocked:
        flipped = np.flip(exchange_channels(weights, group), axis=tuple(axis + 2 for axis in window.axes))
        return tape.emit("Conv", [tensor, tape.constant(flipped)], pads=before + after, **kernel)
    unreached = [beyond_last_window(window, axis, int(source[axis + 2] or 0)) for axis in window.axes]
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


def constant_weights(tape: Tape, node: onnx.NodeProto) -> NDArray[Any]:
    weights = tape.graph.constant(node, 1)
    if weights is None:
        raise UnsupportedOperator(f"{node.op_type} whose weights are not constant", where=node_label(node))
    return weights
