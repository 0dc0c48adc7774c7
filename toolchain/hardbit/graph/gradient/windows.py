"""Sliding windows over one to three spatial axes: what Conv, ConvTranspose and the pools say of them in attributes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from hardbit.graph.gradient.errors import UnsupportedOperator, node_label
from hardbit.graph.gradient.primal import Shape, attributes

__all__ = ["Window", "spatial_window"]


@dataclass(frozen=True)
class Window:
    """A sliding window; `before` and `after` are the paddings at the two ends of each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def axes(self) -> range:
        """Numbers of the spatial axes, from 0."""
        return range(len(self.kernel))

    def extent(self, axis: int) -> int:
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1


def spatial_window(node: onnx.NodeProto, source: Shape, kernel: tuple[int, ...]) -> Window:
    """The window of a Conv or a pooling node over the spatial axes of `source`, with `auto_pad` resolved."""
    rank = len(kernel)
    sizes = [size for size in source[2:] if size is not None]
    if rank not in (1, 2, 3) or len(source) != rank + 2 or len(sizes) != rank:
        raise UnsupportedOperator(f"{node.op_type} over other than one to three fixed axes", where=node_label(node))
    options = attributes(node)
    strides = tuple(options.get("strides", [1] * rank))
    dilations = tuple(options.get("dilations", [1] * rank))
    pads = list(options.get("pads", [0] * (2 * rank)))
    mode = options.get("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        for axis, size in enumerate(sizes):
            outputs = -(-size // strides[axis])
            span = (outputs - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
            padding = max(span - size, 0)
            smaller, larger = padding // 2, padding - padding // 2
            pads[axis], pads[axis + rank] = (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)
    elif mode == "VALID":
        pads = [0] * (2 * rank)
    return Window(tuple(kernel), strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))
