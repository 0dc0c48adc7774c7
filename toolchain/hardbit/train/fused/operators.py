"""Fused operations with derivatives: BatchNorm, quantizer or ReLU, sum with a shortcut, and its quantizer in one.

On the CPU they run in the C library of `hardbit.train.fused.library`. Where there is none, on other devices and for
other types they are composed of PyTorch's operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardbit.train.fused import binding
from hardbit.train.fused.binding import AFFINE, BY_BATCH, PLAIN, TYPES
from hardbit.train.fused.clip import NOTHING, Clip, clip_by_operations
from hardbit.train.fused.library import load_library

__all__ = ["Normalisation", "activate", "fake_quantize", "is_fused"]


@dataclass(frozen=True)
class Normalisation:
    """BatchNorm of one call: per-channel float32 tensors, weight and bias None for ones and zeros.

    By running statistics, or `by_batch`: then mean and variance (over n, not n - 1) are written.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    epsilon: float
    by_batch: bool


def fake_quantize(
    x: Tensor, scale: float, low: float, high: float, relu: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """clip(round(x / scale), low, high) * scale, behind a ReLU where `relu`; in `dtype`, x's own by default.

    Rounds half to even. The derivative is straight-through: 1 where the rounded value lies in [low, high] (and x > 0
    behind a ReLU), else 0. x is float32 or bfloat16 of any layout, which the result shares.
    """
    clip = Clip(scale, max(low, 0) if relu else low, high, 0.0 if relu else NOTHING.threshold, rounds=True)
    return activate(x, clip, dtype=dtype)


def activate(
    x: Tensor,
    clip: Clip,
    *,
    normalisation: Normalisation | None = None,
    other: Tensor | None = None,
    then: Clip = NOTHING,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """then(clip(BatchNorm(x)) + other), without the parts that are absent, in `dtype` (x's own by default).

    x: (n, channels, ...) float32 or bfloat16; `other` in `dtype`, of x's shape or broadcast. With a normalisation four
    dimensions come out as channels_last; the sums of BatchNorm are taken in another order than PyTorch's. Without one
    the bits are those of the separate operations. Derivatives by x and other, and by the batch by weight and bias
    as well.
    """
    dtype = dtype or x.dtype
    broadcasts = other is not None and other.shape != x.shape
    if broadcasts or not is_fused(x, dtype):
        return _composed(x, clip, normalisation, other, then, dtype)
    weight, bias = (None, None) if normalisation is None else (normalisation.weight, normalisation.bias)
    result: Tensor = _Activate.apply(x, other, weight, bias, clip, then, normalisation, dtype)
    return result


def is_fused(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether an operation from `x` to `dtype` runs in the C library."""
    return x.device.type == "cpu" and x.dtype in TYPES and dtype in TYPES and load_library() is not None


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        other: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        clip: Clip,
        then: Clip,
        norm: Normalisation | None,
        dtype: torch.dtype,
    ) -> Tensor:
        x = _laid_out(x, channels_fastest=norm is not None)
        y = torch.empty_like(x, dtype=dtype)
        mask = torch.empty_like(x, dtype=torch.uint8)
        kind = PLAIN if norm is None else BY_BATCH if norm.by_batch else AFFINE
        call = binding.Activation(
            count=x.numel(),
            channels=1 if norm is None else x.shape[1],
            x_type=TYPES[x.dtype],
            y_type=TYPES[dtype],
            batch_norm=kind,
            threads=binding.threads_for(x.numel()),
            first=binding.clip_argument(clip),
            second=binding.clip_argument(then),
            x=x.data_ptr(),
            y=y.data_ptr(),
            mask=mask.data_ptr(),
        )
        if other is not None:
            other = _as(other, y)
            call.other = other.data_ptr()
        if norm is not None:
            _point_to(call, norm)
        binding.call("activate", call)
        ctx.call, ctx.norm, ctx.x_dtype = call, norm, x.dtype
        ctx.save_for_backward(mask, x if kind == BY_BATCH else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        mask, x = ctx.saved_tensors
        call, norm = ctx.call, ctx.norm
        of_y = _as(of_y, mask)
        of_x = torch.empty_like(mask, dtype=ctx.x_dtype)
        call.x, call.mask = None if x is None else x.data_ptr(), mask.data_ptr()
        gradient = binding.Gradient(of_y=of_y.data_ptr(), of_x=of_x.data_ptr())
        of_other = of_weight = of_bias = None
        if call.other:
            of_other = torch.empty_like(mask, dtype=of_y.dtype)
            gradient.of_other = of_other.data_ptr()
        if x is not None and ctx.needs_input_grad[2]:
            of_weight = torch.empty_like(norm.mean)
            gradient.of_weight = of_weight.data_ptr()
        if x is not None and ctx.needs_input_grad[3]:
            of_bias = torch.empty_like(norm.mean)
            gradient.of_bias = of_bias.data_ptr()
        binding.call("activate_backward", call, gradient)
        return of_x, of_other, of_weight, of_bias, None, None, None, None


def _point_to(call: binding.Activation, norm: Normalisation) -> None:
    """The tensors of `norm` stay where they are as long as it lives."""
    call.mean, call.variance, call.epsilon = norm.mean.data_ptr(), norm.variance.data_ptr(), norm.epsilon
    call.weight = None if norm.weight is None else norm.weight.data_ptr()
    call.bias = None if norm.bias is None else norm.bias.data_ptr()


def _laid_out(x: Tensor, channels_fastest: bool) -> Tensor:
    """`x` without holes or overlaps, in its own layout where that will do."""
    if channels_fastest:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()


def _as(x: Tensor, like: Tensor) -> Tensor:
    """The values of `x`, laid out as `like`."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def _composed(
    x: Tensor, clip: Clip, norm: Normalisation | None, other: Tensor | None, then: Clip, dtype: torch.dtype
) -> Tensor:
    if norm is not None and norm.by_batch:
        with torch.no_grad():
            axes = [0, *range(2, x.dim())]
            for place, measured in zip(
                (norm.variance, norm.mean), torch.var_mean(x.float(), axes, correction=0), strict=True
            ):
                place.copy_(measured)
        x = F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.epsilon)
    elif norm is not None:
        x = F.batch_norm(x, norm.mean, norm.variance, norm.weight, norm.bias, False, 0.0, norm.epsilon)
    x = clip_by_operations(x, clip).to(dtype)
    return x if other is None else clip_by_operations(x + other, then)
