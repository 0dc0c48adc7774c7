"""Scales, zero points and codes: what a range becomes at a given width, and what weights and biases become."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardbit.ptq.least_squares import least_squares_weight_scale

__all__ = [
    "SIGNS",
    "ActivationCodes",
    "WeightCodes",
    "activation_codes",
    "bias_codes",
    "least_scale_for_bias",
    "symmetric_codes",
    "weight_codes",
]

_TINY = float(np.finfo(np.float32).tiny)
_LEAST_SCALE = _TINY * 2**24  # times an activation's scale it is still a normal number
_LARGEST_BIAS = 2**30
_BITS = 8
_WIDEST_UNSIGNED = 7  # bits, of codes that have to fit int8


@dataclass(frozen=True)
class ActivationCodes:
    """value = (code - zero_point) * scale, codes from `low` to `high`; the zero point's type is that of the codes."""

    scale: np.float32
    zero_point: np.uint8 | np.int8
    low: int
    high: int
    bits: int

    @property
    def fills_its_type(self) -> bool:
        limits = np.iinfo(self.zero_point.dtype)
        return (self.low, self.high) == (int(limits.min), int(limits.max))


@dataclass(frozen=True)
class WeightCodes:
    """int8 codes with one float32 scale an output channel, (channels,), and zero point 0."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bits: int


SIGNS = ActivationCodes(np.float32(1), np.int8(0), -1, 1, 1)


def activation_codes(low: float, high: float, bits: int) -> ActivationCodes:
    """Unsigned codes for [low, high], widened to hold 0 exactly; zero point 0 where nothing is negative."""
    low, high, largest = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = np.float32((high - low) / largest)
    if not np.isfinite(scale) or scale < _TINY:
        scale = np.float32(1 / largest)  # nothing but 0 was seen
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, largest))
    return ActivationCodes(scale, np.uint8(zero_point), 0, largest, bits)


def symmetric_codes(low: float, high: float, bits: int) -> ActivationCodes:
    """Codes of zero point 0 that fit int8: signed for [low, high], or where nothing is negative unsigned, of 7 bits at
    most."""
    if low >= 0:
        return activation_codes(low, high, min(bits, _WIDEST_UNSIGNED))
    least, greatest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = np.float32(max(low / least, high / greatest))
    if not np.isfinite(scale) or scale < _TINY:
        scale = np.float32(1 / greatest)
    return ActivationCodes(scale, np.int8(0), least, greatest, bits)


def weight_codes(
    weights: NDArray[np.float32], bits: int, least_scale: NDArray[np.float32], *, per_channel: bool = True
) -> WeightCodes:
    """Symmetric codes of `weights` (channels, ...), from -(2^(bits-1) - 1) on.

    At 8 bits a channel's largest weight has the largest code; below, the scale is that of least squared error. Where
    every weight of a channel is one number, its negative, or 0, the codes are -1, 0 and 1, which is exact. A channel of
    zeros has the scale of the others. No scale is below `least_scale` (channels,): see `least_scale_for_bias`.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float32)
    peaks = np.abs(rows).max(axis=1, initial=0)
    if np.all((np.abs(rows) == peaks[:, None]) | (rows == 0)) and peaks.max(initial=0) >= _LEAST_SCALE:
        scale = np.where(peaks > 0, peaks, peaks.max()).astype(np.float32)
        codes = np.rint(rows / scale[:, None]).astype(np.int8).reshape(weights.shape)
        return WeightCodes(codes, scale, 2 if (rows == 0).any() else 1)
    if not per_channel:
        rows = rows.reshape(1, -1)
    largest = max(2 ** (bits - 1) - 1, 1)
    if bits >= _BITS:
        scale = (np.abs(rows).max(axis=1, initial=0) / largest).astype(np.float32)
    else:
        scale = least_squares_weight_scale(rows, largest)
    dead = scale < _LEAST_SCALE
    scale[dead] = scale.max() if scale.max() >= _LEAST_SCALE else 1 / largest
    scale = np.maximum(np.broadcast_to(scale, (len(weights),)), least_scale).astype(np.float32)
    divisor = scale.reshape(-1, *[1] * (weights.ndim - 1))
    codes = np.clip(np.rint(weights / divisor), -largest, largest).astype(np.int8)
    return WeightCodes(codes, scale, bits)


def bias_codes(
    bias: NDArray[np.float32], input_scale: np.float32, weight_scale: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """int32 codes of `bias` (channels,) and their scale, float32(s_x * s_w): one count of the accumulator each."""
    unit = (np.float32(input_scale) * weight_scale).astype(np.float32)
    return np.rint(bias.astype(np.float64) / unit.astype(np.float64)).astype(np.int32), unit


def least_scale_for_bias(bias: NDArray[np.float32], input_scale: np.float32) -> NDArray[np.float32]:
    """The least weight scale, (channels,), at which each bias fits into its accumulator."""
    return (np.abs(bias).astype(np.float64) / (float(input_scale) * _LARGEST_BIAS)).astype(np.float32)
