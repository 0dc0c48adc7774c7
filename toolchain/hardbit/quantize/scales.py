"""Scales that make the arithmetic exact.

An activation scale is a power of two, a weight scale has a significand of `SIGNIFICAND_BITS` bits. Then every product
of a code and a scale, and every sum of such products while |partial sum| * 2**SIGNIFICAND_BITS <= 2**24, is a float32
number: the order of summation no longer matters, and PyTorch, ONNX Runtime in float, its integer kernels and the
attack graph give the same bits. BatchNorm before, and the free per-channel weight scale behind an activation make up
for the coarse grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardbit.quantize.observation import Codes, Observer, observer_for

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
    """A power of two, fixed by calibration: the Brevitas scaling of one activation quantizer with these `codes`.

    While `observing`, the scale is what the observer of the `calibration` suggests so far; `settle` fixes it.
    """

    value: Tensor

    def __init__(self, codes: Codes, calibration: str = "range") -> None:
        super().__init__()
        self.codes = codes
        self.calibration = calibration
        self.is_fixed = False  # the image's scale is given, not found
        self._observer: Observer | None = None
        self.register_buffer("value", torch.ones(()))

    @property
    def observing(self) -> bool:
        return self._observer is not None

    def observe(self) -> None:
        """Begin to look for the scale."""
        self._observer = observer_for(self.codes, self.calibration)

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        return self.value if self._observer is None else self._observer.see(x)

    def settle(self) -> bool:
        """Fix the scale; False where nothing but zeros, or nothing finite, was seen to fix it by."""
        found = self._observer.suggested() if self._observer is not None else None
        self._observer = None
        if found is not None:
            self.value.fill_(found)
        return found is not None


class WeightScale(nn.Module):
    """Per-channel scale of a weight of shape (out, ...): the Brevitas scaling of one weight quantizer.

    Starts from max |w| over the largest code (at 2 bits from mean |w|: max leaves nearly all codes at zero). Below 7
    bits it is learned, in the log domain; at 7 and 8 it follows max |w|. At 1 bit it is mean |w| always, which brings
    -scale and +scale closest to the weights. `freeze` fixes it.
    """

    fixed: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.largest_code = max(1, 2 ** (bits - 1) - 1)
        self.learned = 1 < bits < 7
        self.is_binary = bits == 1
        self._of_mean = bits <= 2
        self._axes = tuple(range(1, weight.dim()))
        initial = self._of(weight.detach())
        self.log2_scale = nn.Parameter(torch.log2(initial)) if self.learned else None
        self.register_buffer("fixed", torch.zeros_like(initial))
        self._frozen = False

    def forward(self, weight: Tensor, threshold: Tensor | None = None) -> Tensor:
        if self._frozen:
            return self.fixed
        if self.log2_scale is not None:
            return short_significand(torch.exp2(self.log2_scale))
        return short_significand(self._of(weight))

    def restart(self, weight: Tensor) -> None:
        """Let a learned scale begin again, from other weights."""
        if self.log2_scale is not None:
            with torch.no_grad():
                self.log2_scale.copy_(torch.log2(self._of(weight)))

    def rescale(self, factor: Tensor) -> None:
        """The weight was multiplied by `factor` (out,): a learned scale follows by |factor|."""
        if self.log2_scale is not None:
            with torch.no_grad():
                self.log2_scale.add_(torch.log2(factor.abs().clamp_min(2.0**-40)).view_as(self.log2_scale))

    def freeze(self, weight: Tensor, at_least: Tensor | None = None) -> None:
        """Fix the scale at what it is for `weight`, but not under `at_least` (out,), rounded up to a power of two."""
        with torch.no_grad():
            self.fixed.copy_(self.forward(weight))
            if at_least is not None:
                least = torch.exp2(torch.ceil(torch.log2(at_least.clamp_min(2.0**-100)))).view_as(self.fixed)
                self.fixed.copy_(torch.maximum(self.fixed, least))
        self.log2_scale = None
        self._frozen = True

    def _of(self, weight: Tensor) -> Tensor:
        """What `weight` itself suggests, (out, 1, ...)."""
        magnitude = weight.abs()
        reach = magnitude.mean if self._of_mean else magnitude.amax
        return reach(self._axes, keepdim=True).clamp_min(2.0**-40) / self.largest_code


class BiasScale(nn.Module):
    """(input scale) * (weight scale) per channel, shape (out,): the grid that an int32 accumulator gives to a bias."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        return self.value
