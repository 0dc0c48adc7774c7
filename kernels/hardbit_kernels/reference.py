"""Integer reference: what a quantized engine computes, one function an operation, exact to the bit.

The definitions are those of ONNX Runtime's CPU kernels (MLAS), which other kernels are compared with. Codes are int8
or uint8; a code q with scale s and zero point z stands for the number s * (q - z). Tensors are (n, channels, height,
width) unless said otherwise. Layers accumulate in 64 bits and refuse what would not fit the engine's 32.

Boundary: it is written to be read, not to be fast, and knows nothing of graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "add",
    "average_pool_global",
    "clip",
    "conv2d",
    "dequantize",
    "linear",
    "max_pool",
    "output_multiplier",
    "quantize",
    "relu_floor",
    "requantize",
]

Codes = NDArray[Any]
_INT32 = np.iinfo(np.int32)


def quantize(values: NDArray[np.float32], scale: np.float32, zero_point: int, dtype: DTypeLike) -> Codes:
    """Codes of float32 numbers: divide by `scale` in float32, round half to even, add `zero_point`, saturate.

    ONNX QuantizeLinear (opset 13 and later): the zero point is added after rounding.
    """
    rounded = np.rint(np.asarray(values, np.float32) / np.float32(scale))
    return _saturate(rounded.astype(np.float64) + zero_point, dtype)


def dequantize(codes: Codes, scale: NDArray[np.float32] | np.float32, zero_point: int = 0) -> NDArray[np.float32]:
    """float32(code - zero_point) * scale, in float32; `scale` broadcasts against `codes`."""
    centred = codes.astype(np.int64) - zero_point
    return np.asarray(centred.astype(np.float32) * np.asarray(scale, np.float32))


def conv2d(
    codes: Codes,
    weight: Codes,
    bias: NDArray[np.int32] | None = None,
    *,
    zero_point: int = 0,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> NDArray[np.int32]:
    """Accumulators of a convolution, int32 (n, outputs, rows, columns): sum of (code - zero_point) * weight, plus bias.

    `codes` (n, inputs, height, width); `weight` (outputs, inputs / groups, kernel rows, kernel columns) with zero point
    0; `bias` (outputs,) in units of the accumulator. `pads` is (top, left, bottom, right); padding holds the number 0,
    that is the code `zero_point`. Raises OverflowError when an accumulator leaves 32 bits.
    """
    centred = codes.astype(np.int64) - zero_point
    padded = np.pad(centred, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    outputs, per_group, *kernel = weight.shape
    windows = _windows(padded, (kernel[0], kernel[1]), strides, dilations)
    rows, columns = windows.shape[2:4]
    result = np.empty((len(codes), outputs, rows, columns), np.int64)
    for group in range(groups):
        inputs = slice(group * per_group, (group + 1) * per_group)
        filters = slice(group * outputs // groups, (group + 1) * outputs // groups)
        result[:, filters] = np.moveaxis(
            np.tensordot(windows[:, inputs], weight[filters].astype(np.int64), axes=([1, 4, 5], [1, 2, 3])), 3, 1
        )
    if bias is not None:
        result += bias.astype(np.int64)[:, None, None]
    return _int32(result)


def linear(
    codes: Codes, weight: Codes, bias: NDArray[np.int32] | None = None, *, zero_point: int = 0
) -> NDArray[np.int32]:
    """Accumulators of a fully connected layer, int32 (n, outputs): codes (n, inputs), weight (outputs, inputs).

    Raises OverflowError when an accumulator leaves 32 bits.
    """
    result = (codes.astype(np.int64) - zero_point) @ weight.astype(np.int64).T
    if bias is not None:
        result += bias.astype(np.int64)
    return _int32(result)


def output_multiplier(
    input_scale: np.float32, weight_scale: NDArray[np.float32] | np.float32, output_scale: np.float32 | None = None
) -> NDArray[np.float32]:
    """What an accumulator is multiplied with: float32(float32(s_x * s_w) / s_y); without an output scale s_x * s_w.

    Shape of `weight_scale`: () or (outputs,). The order of the two roundings is ONNX Runtime's.
    """
    product = np.asarray(np.float32(input_scale) * np.asarray(weight_scale, np.float32))
    return product if output_scale is None else np.asarray(product / np.float32(output_scale))


def requantize(
    accumulator: NDArray[np.int32], multiplier: NDArray[np.float32], zero_point: int, dtype: DTypeLike
) -> Codes:
    """Codes of accumulators: float32(accumulator) * multiplier in float32, round half to even, zero point, saturate.

    `multiplier` is () or (channels,) along axis 1. float32(accumulator) rounds above 2^24: that is the engine's
    arithmetic. Saturation at a zero point that is the least code *is* the ReLU.
    """
    scaled = accumulator.astype(np.float32) * _along_channels(multiplier, accumulator.ndim)
    return _saturate(np.rint(scaled).astype(np.float64) + zero_point, dtype)


def relu_floor(codes: Codes, zero_point: int) -> Codes:
    """ReLU on codes: nothing below the code of 0. A no-op when `zero_point` is the least code of the type."""
    return np.asarray(np.maximum(codes, np.asarray(zero_point, codes.dtype)))


def clip(codes: Codes, low: int, high: int) -> Codes:
    """Codes held inside [low, high]: a quantizer of fewer bits than the type."""
    return np.clip(codes, low, high).astype(codes.dtype)


def add(
    a: Codes,
    b: Codes,
    *,
    scales: tuple[np.float32, np.float32, np.float32],
    zero_points: tuple[int, int, int],
) -> Codes:
    """Codes of the sum of two tensors of codes; `scales` and `zero_points` are those of (a, b, result).

    ONNX Runtime's QLinearAdd with fused multiply-add (AVX2, NEON), all in float32:
    constant = z_c - (r_a * z_a + r_b * z_b), with r = s / s_c; fma(a, r_a, fma(b, r_b, constant)); round half to even;
    saturate. The zero point is added *before* rounding: at an odd one, ties fall the other way than QuantizeLinear's.
    (The fma is taken in float64 and rounded once to float32: exact but for ties that 53 bits cannot tell apart.)
    """
    scale_a, scale_b, scale_c = (np.float32(scale) for scale in scales)
    zero_a, zero_b, zero_c = zero_points
    ratio_a, ratio_b = np.float32(scale_a / scale_c), np.float32(scale_b / scale_c)
    constant = np.float32(zero_c) - (ratio_a * np.float32(zero_a) + ratio_b * np.float32(zero_b))
    partial = (b.astype(np.float64) * np.float64(ratio_b) + np.float64(constant)).astype(np.float32)
    total = (a.astype(np.float64) * np.float64(ratio_a) + partial.astype(np.float64)).astype(np.float32)
    return _saturate(np.rint(total).astype(np.float64), a.dtype)


def average_pool_global(
    codes: Codes, *, scales: tuple[np.float32, np.float32], zero_points: tuple[int, int], dtype: DTypeLike
) -> Codes:
    """Codes (n, channels, 1, 1) of each channel's mean; `scales` and `zero_points` are those of (codes, result).

    ONNX Runtime's QLinearGlobalAveragePool: int32 sum of (code - z_x), times float32(s_x / float32(s_y * pixels)),
    then as `requantize`.
    """
    scale_x, scale_y = (np.float32(scale) for scale in scales)
    pixels = codes.shape[2] * codes.shape[3]
    total = (codes.astype(np.int64) - zero_points[0]).sum(axis=(2, 3), keepdims=True)
    multiplier = np.asarray(scale_x / np.float32(scale_y * np.float32(pixels)))
    return requantize(_int32(total), multiplier, zero_points[1], dtype)


def max_pool(
    codes: Codes,
    *,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    ceil_mode: bool = False,
) -> Codes:
    """The greatest code of each window: pooling commutes with dequantization because scales are positive.

    Padding never wins. `pads` is (top, left, bottom, right). With `ceil_mode` a last window that begins inside the
    image or its leading padding counts even where it sticks out, as in PyTorch.
    """
    end = [pads[2], pads[3]]
    if ceil_mode:
        for axis in range(2):
            size = codes.shape[2 + axis] + pads[axis] + pads[2 + axis]
            window = (kernel[axis] - 1) * dilations[axis] + 1
            count = -(-(size - window) // strides[axis]) + 1
            if (count - 1) * strides[axis] >= codes.shape[2 + axis] + pads[axis]:
                count -= 1
            end[axis] += max(0, (count - 1) * strides[axis] + window - size)
    least = np.iinfo(codes.dtype).min
    padded = np.pad(codes, ((0, 0), (0, 0), (pads[0], end[0]), (pads[1], end[1])), constant_values=least)
    pooled = _windows(padded, kernel, strides, dilations).max(axis=(4, 5))
    return np.asarray(pooled)


def _windows(
    image: NDArray[Any], kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
) -> NDArray[Any]:
    """Views (n, channels, rows, columns, kernel rows, kernel columns) of every window of `image`."""
    extent = ((kernel[0] - 1) * dilations[0] + 1, (kernel[1] - 1) * dilations[1] + 1)
    windows = sliding_window_view(image, extent, axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _along_channels(values: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    values = np.asarray(values, np.float32)
    return values if values.ndim == 0 else values.reshape(1, -1, *[1] * (dimensions - 2))


def _int32(accumulator: NDArray[np.int64]) -> NDArray[np.int32]:
    if accumulator.size and (accumulator.max() > _INT32.max or accumulator.min() < _INT32.min):
        raise OverflowError("an accumulator leaves 32 bits: the engine would wrap around")
    return accumulator.astype(np.int32)


def _saturate(rounded: NDArray[np.float64], dtype: DTypeLike) -> Codes:
    limits = np.iinfo(np.dtype(dtype))  # type: ignore[type-var]
    return np.clip(rounded, limits.min, limits.max).astype(dtype)
