"""The adjoint of a convolution of stride 2 as one of stride 1 with four times the channels, whose pixels are then
interleaved (Shi et al. 2016, arXiv:1609.05158): what ConvTranspose does, on kernels that it does not have.

Boundary: weights and conditions; writes no nodes.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from hardbit.graph.gradient.primal import attributes

__all__ = ["doubles", "padding_of", "sub_pixel_weights"]


def doubles(node: onnx.NodeProto) -> bool:
    """Whether a ConvTranspose of stride 2 makes exactly twice the rows and columns, of a square kernel."""
    options, padding = attributes(node), padding_of(node)
    size = options["kernel_shape"][0]
    return (
        options["kernel_shape"] == [size, size]
        and options.get("strides") == [2, 2]
        and options.get("dilations", [1, 1]) == [1, 1]
        and options.get("group", 1) == 1
        and options.get("pads", [0, 0, 0, 0]) == [padding] * 4
        and options.get("output_padding", [0, 0]) == [2 - size + 2 * padding] * 2
    )


def padding_of(node: onnx.NodeProto) -> int:
    """The first of its paddings."""
    return int(attributes(node).get("pads", [0])[0])


def sub_pixel_weights(weights: NDArray[np.float32], padding: int) -> tuple[NDArray[np.float32], list[int]]:
    """The convolution of stride 1 that makes the four pixels of every 2x2 block of the adjoint of a correlation of
    stride 2 with `weights` (out, in, k, k) and `padding`: its weights (4 in, out, m, m), and its own paddings."""
    outputs, inputs, size, _ = weights.shape
    # Pixel 2a + phase takes weight k from output a + (phase + padding - k) / 2: so far before, and so far behind.
    before, behind = (size - 1 - padding) // 2, (1 + padding) // 2
    width = before + behind + 1
    phases = np.zeros((2, 2, inputs, outputs, width, width), np.float32)
    for row, column, k, m in np.ndindex(2, 2, size, size):
        down, right = row + padding - k, column + padding - m
        if down % 2 == 0 and right % 2 == 0:
            phases[row, column, :, :, before + down // 2, before + right // 2] = weights[:, :, k, m].T
    return phases.reshape(4 * inputs, outputs, width, width), [before, before, behind, behind]
