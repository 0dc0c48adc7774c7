"""Scales that make the arithmetic exact.

An activation scale is a power of two, a weight scale has a significand of `SIGNIFICAND_BITS` bits. Then every product
of a code and a scale, and every sum of such products while |accumulator| * 2**SIGNIFICAND_BITS <= 2**24, is a float32
number: the order of summation no longer matters, and PyTorch, ONNX Runtime in float, its integer kernels and the
attack graph give the same bits. BatchNorm before, and the free per-channel weight scale behind an activation make up
for the coarse grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["INPUT_SCALE", "SIGNIFICAND_BITS", "ActivationScale", "BiasScale", "WeightScale", "short_significand"]

SIGNIFICAND_BITS = 5
INPUT_SCALE = 1 / 256


def short_significand(scale: Tensor) -> Tensor:
    """The nearest number whose significand has SIGNIFICAND_BITS bits; gradients pass straight through."""
    significand, exponent = torch.frexp(scale.detach())
    steps = 2.0**SIGNIFICAND_BITS
    snapped = torch.ldexp(torch.round(significand * steps) / steps, exponent)
    return scale + (snapped - scale).detach() if scale.requires_grad else snapped


class ActivationScale(nn.Module):
    """A power of two, fixed by calibration: the Brevitas scaling of one activation quantizer.

    `observing` collects the `quantile` of |x| over the forward passes of calibration; `settle` turns it into the scale.
    """

    value: Tensor

    def __init__(self, largest_code: int, quantile: float = 0.999) -> None:
        super().__init__()
        self.largest_code = largest_code
        self.quantile = quantile
        self.is_fixed = False  # the image's scale is given, not found
        self.observing = False
        self._seen: list[Tensor] = []
        self.register_buffer("value", torch.ones(()))

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        if self.observing:
            magnitude = x.detach().abs().flatten()
            rank = max(1, round(self.quantile * magnitude.numel()))
            reach = torch.kthvalue(magnitude, rank).values
            self._seen.append(reach)
            return reach.clamp_min(2.0**-20) / self.largest_code  # unrounded while it is being found
        return self.value

    def settle(self) -> None:
        """Fix the scale at the power of two nearest to (mean quantile) / largest_code."""
        if self._seen:
            reach = torch.stack(self._seen).mean().clamp_min(2.0**-20)
            self.value.copy_(torch.exp2(torch.round(torch.log2(reach / self.largest_code))))
        self._seen.clear()
        self.observing = False


class WeightScale(nn.Module):
    """Per-channel scale of a weight of shape (out, ...): the Brevitas scaling of one weight quantizer.

    Starts from max |w| (from mean |w| at 2 bits, TRAINING: `max` leaves nearly all codes at zero) over the largest
    code; below 7 bits it is learned, in the log domain; at 7 and 8 it follows max |w|. `freeze` fixes it.
    """

    fixed: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.largest_code = 2 ** (bits - 1) - 1
        self.learned = bits < 7
        self._axes = tuple(range(1, weight.dim()))
        reach = weight.detach().abs().amax(self._axes, keepdim=True)
        if bits == 2:
            reach = weight.detach().abs().mean(self._axes, keepdim=True)
        initial = reach.clamp_min(2.0**-40) / self.largest_code
        self.log2_scale = nn.Parameter(torch.log2(initial)) if self.learned else None
        self.register_buffer("fixed", torch.zeros_like(initial))
        self._frozen = False

    def forward(self, weight: Tensor, threshold: Tensor | None = None) -> Tensor:
        if self._frozen:
            return self.fixed
        if self.log2_scale is not None:
            return short_significand(torch.exp2(self.log2_scale))
        reach = weight.abs().amax(self._axes, keepdim=True).clamp_min(2.0**-40)
        return short_significand(reach / self.largest_code)

    def rescale(self, factor: Tensor) -> None:
        """The weight was multiplied by `factor` (out,): a learned scale follows by |factor|."""
        if self.log2_scale is not None:
            with torch.no_grad():
                self.log2_scale.add_(torch.log2(factor.abs().clamp_min(2.0**-40)).view_as(self.log2_scale))

    def freeze(self, weight: Tensor) -> None:
        """Fix the scale at what it is for `weight`."""
        with torch.no_grad():
            self.fixed.copy_(self.forward(weight))
        self.log2_scale = None
        self._frozen = True


class BiasScale(nn.Module):
    """(input scale) * (weight scale) per channel, shape (out,): the grid that an int32 accumulator gives to a bias."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        return self.value
