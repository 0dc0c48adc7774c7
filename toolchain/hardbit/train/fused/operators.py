"""Fake quantization as one autograd operation: fused on the CPU, composed of PyTorch's operations elsewhere."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from hardbit.train.fused.library import load_library

__all__ = ["fake_quantize", "is_fused"]

_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_FORWARD = {(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)}


def fake_quantize(
    x: Tensor,
    scale: float,
    low: float,
    high: float,
    relu: bool = False,
    *,
    smooth: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """clip(round(x / scale), low, high) * scale, behind a ReLU where `relu`; in `dtype`, x's own by default.

    Rounds half to even. The derivative is straight-through: 1 where the rounded value lies in [low, high] (and x > 0
    behind a ReLU), else 0. `smooth` clips without rounding, and its derivative is the true one. x may be float32 or
    bfloat16 and of any layout; the result has the same layout.
    """
    result: Tensor = _FakeQuantize.apply(x, scale, low, high, relu, smooth, dtype or x.dtype)
    return result


def is_fused(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether `fake_quantize` of `x` runs as one pass of the C library."""
    return x.device.type == "cpu" and (x.dtype, dtype or x.dtype) in _FORWARD and load_library() is not None


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: float, low: float, high: float, relu: bool, smooth: bool, dtype: torch.dtype
    ) -> Tensor:
        ctx.dtype = x.dtype
        if not is_fused(x, dtype):
            y, mask = _composite(x, scale, low, high, relu, smooth)
            ctx.save_for_backward(mask)
            return y.to(dtype)
        x = _dense(x)
        y = torch.empty_like(x, dtype=dtype)
        mask = torch.empty_like(x, dtype=torch.uint8)
        _function(f"quantize_{_NAMES[x.dtype]}_{_NAMES[dtype]}")(
            x.data_ptr(), y.data_ptr(), mask.data_ptr(), x.numel(), scale, low, high, relu, smooth, _threads(x)
        )
        ctx.save_for_backward(mask)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        none = (None,) * 6
        if mask.dtype == torch.bool:
            return torch.where(mask, gradient, 0).to(ctx.dtype), *none
        if gradient.stride() != mask.stride():
            gradient = torch.empty_like(mask, dtype=gradient.dtype).copy_(gradient)
        result = torch.empty_like(mask, dtype=ctx.dtype)
        _function(f"pass_{_NAMES[gradient.dtype]}_{_NAMES[ctx.dtype]}")(
            gradient.data_ptr(), mask.data_ptr(), result.data_ptr(), mask.numel(), _threads(mask)
        )
        return result, *none


def _composite(x: Tensor, scale: float, low: float, high: float, relu: bool, smooth: bool) -> tuple[Tensor, Tensor]:
    x = x.float()
    scaled = (torch.relu(x) if relu else x) / scale
    code = scaled if smooth else torch.round(scaled)
    mask = (code <= high) & (code >= low)
    if relu:
        mask &= x > 0
    return code.clamp(low, high) * scale, mask


def _dense(x: Tensor) -> Tensor:
    """`x` without holes or overlaps, in its own layout where it can stay."""
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()


def _threads(x: Tensor) -> int:
    """Threads that pay: below a few hundred thousand elements starting them costs more than they save."""
    return min(torch.get_num_threads(), 1 + x.numel() // 131_072)


def _function(name: str) -> Any:
    library = load_library()
    function = getattr(library, name)
    if not function.argtypes:
        pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        function.restype = None
        if name.startswith("quantize"):
            real = ctypes.c_float
            function.argtypes = [pointer, pointer, pointer, count, real, real, real, number, number, number]
        else:
            function.argtypes = [pointer, pointer, pointer, count, number]
    return function
