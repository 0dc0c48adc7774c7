"""One bit with a sign: -scale and +scale, as Brevitas wants a quantizer of a tensor to look.

Brevitas' own binary quantizer has a scale that is a parameter or a constant per tensor. These take any scaling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BinaryActivationQuant", "BinaryWeightQuant", "binarize"]


class _OneBit(nn.Module):
    """What Brevitas asks of a quantizer of tensors: a scaling, and (value, scale, zero point, width) of a tensor."""

    zero_point: Tensor
    bit_width: Tensor

    def __init__(self, scaling_impl: nn.Module) -> None:
        super().__init__()
        self.scaling_impl = scaling_impl
        self.register_buffer("zero_point", torch.zeros(()), persistent=False)
        self.register_buffer("bit_width", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale = self.scaling_impl(x)
        return self.binarized(x, scale), scale, self.zero_point, self.bit_width

    def binarized(self, x: Tensor, scale: Tensor) -> Tensor:
        raise NotImplementedError


class BinaryWeightQuant(_OneBit):
    """w > 0 becomes +scale, else -scale, as in XNOR-Net (Rastegari et al. 2016). The derivative is straight-through."""

    def binarized(self, x: Tensor, scale: Tensor) -> Tensor:
        result: Tensor = _Sign.apply(x, scale)
        return result


class BinaryActivationQuant(_OneBit):
    """x > 0 becomes +scale, else -scale; see `binarize`."""

    def binarized(self, x: Tensor, scale: Tensor) -> Tensor:
        return binarize(x, scale)


def binarize(x: Tensor, scale: Tensor | float) -> Tensor:
    """+scale where x > 0, else -scale, with the derivative of a quantizer whose two levels are -scale and +scale.

    A quantizer's rounding reaches half a step beyond its last level; the step is 2 scale here, so the gradient passes
    where -2 scale <= x < 2 scale. It is written as the canonical graph writes it, (x + scale) as one unsigned bit of
    scale 2 scale, less scale, so that both have the same bits and the same derivative.
    """
    code = (x + scale) / (2 * scale)
    rounded = code + (torch.round(code) - code).detach()
    return torch.clamp(rounded, 0, 1) * (2 * scale) - scale


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return torch.where(x > 0, scale, -scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = ctx.saved_tensors
        axes = tuple(range(1, x.dim()))
        return gradient, (gradient * torch.where(x > 0, 1.0, -1.0)).sum(axes, keepdim=True)
