"""The function that an activation quantizer or a ReLU applies to each number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import brevitas.nn as qnn
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardbit.quantize.quantizers import ActivationNumerics, activation_numerics, is_activation_quantizer

__all__ = ["NOTHING", "RELU", "Clip", "clip_by_operations", "clip_of"]


@dataclass(frozen=True)
class Clip:
    """clip(round((x + offset) / scale), low, high) * scale - offset, rounding half to even, or not rounding.

    The derivative is straight-through: 1 where the (rounded) value lies in [low, high] and x > threshold, else 0.
    """

    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    threshold: float = -math.inf
    offset: float = 0.0
    rounds: bool = False

    @classmethod
    def of(cls, numerics: ActivationNumerics, *, relu: bool, smooth: bool = False) -> Clip:
        """What a quantizer of these numerics does behind a ReLU or without one; `smooth` leaves the rounding out.

        Two levels -s and +s are one unsigned bit of scale 2 s, moved by s.
        """
        if numerics.is_binary:
            step = 2 * numerics.scale
            return cls(step, 0, 1, 0.0 if relu else -math.inf, numerics.scale, not smooth)
        threshold = 0.0 if relu else -math.inf
        low = max(numerics.low, 0) if relu else numerics.low
        return cls(numerics.scale, low, numerics.high, threshold, 0.0, not smooth)


NOTHING = Clip()
RELU = Clip(low=0.0, threshold=0.0)


def clip_of(source: Any, *, smooth: bool = False) -> Clip:
    """What `source` applies to each number: an activation quantizer of Brevitas, a ReLU, or None for nothing."""
    if source is None:
        return NOTHING
    if not is_activation_quantizer(source):
        return RELU
    return Clip.of(activation_numerics(source), relu=isinstance(source, qnn.QuantReLU), smooth=smooth)


def clip_by_operations(x: Tensor, clip: Clip) -> Tensor:
    """`clip` of every number of x, by PyTorch's elementwise operations: the same bits, on any device."""
    result: Tensor = _Clip.apply(x, clip)
    return result


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Clip) -> Tensor:
        value = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = (value + clip.offset) / clip.scale
        code = torch.round(scaled) if clip.rounds else scaled
        ctx.save_for_backward((code <= clip.high) & (code >= clip.low) & (value > clip.threshold))
        return (code.clamp(clip.low, clip.high) * clip.scale - clip.offset).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradient, 0), None
