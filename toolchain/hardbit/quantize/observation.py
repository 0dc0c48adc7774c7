"""What calibration sees of an activation, and the scale that it suggests: a power of two.

Two rules. "range" keeps what the network computes. With many codes the scale reaches to the largest values: a step is
small anyhow. With four codes or two it must not: behind a ReLU nearly all values are small, and codes that wait for the
largest leave them all at zero; there the scale is the one that moves the values least.

"saturating" is for ReLUs of networks that are trained from the start. The codes end at the root mean square of what is
not zero, so that behind BatchNorm every third of these values saturates, at every width alike. An adversary cannot push
further what is at the end of its range, and training fits the rest of the network to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Codes", "Observer", "observer_for"]

_QUANTILE = 0.999
_FEW_CODES = 4
_SMALLEST_REACH = 2.0**-20
_CANDIDATES = 10
_SAMPLE = 2**16


@dataclass(frozen=True)
class Codes:
    """Least and greatest code of a quantizer; `is_binary`: without those between. Values end at `ceiling`."""

    low: int
    high: int
    is_binary: bool = False
    ceiling: float = math.inf

    def nearest(self, x: Tensor) -> Tensor:
        """The codes of `x`, which is in units of the scale."""
        if self.is_binary:
            return torch.where(x > 0, float(self.high), float(self.low))
        return torch.clamp(torch.round(x), self.low, self.high)


class Observer(Protocol):
    """Sees an activation, batch by batch."""

    def see(self, x: Tensor) -> Tensor:
        """Take `x` into account; returns the scale to quantize it by meanwhile, a positive scalar."""

    def suggested(self) -> float | None:
        """The power of two that fits what was seen; None where that was nothing but zeros, or not finite."""


def observer_for(codes: Codes, calibration: str) -> Observer:
    """Of "range": by the smallest error for at most four codes, by the largest values for more. Of "saturating":
    by the root mean square."""
    if calibration == "saturating":
        return _Reach(codes, _root_mean_square, end=codes.high + 1)
    few = codes.is_binary or codes.high - codes.low < _FEW_CODES
    return _SmallestError(codes) if few else _Reach(codes, _largest, end=codes.high)


def _largest(magnitude: Tensor) -> Tensor:
    """The 99.9 % quantile; or the greatest number, where hardly any other is not zero."""
    rank = max(1, round(_QUANTILE * magnitude.numel()))
    reach = torch.kthvalue(magnitude, rank).values
    return magnitude.max() if reach == 0 else reach


def _root_mean_square(magnitude: Tensor) -> Tensor:
    """Of what is not zero."""
    count = torch.count_nonzero(magnitude).clamp_min(1)
    return torch.sqrt(magnitude.float().square().sum() / count)


class _Reach:
    """The mean over batches of some statistic of |x| is where the code `end` stands, or would stand."""

    def __init__(self, codes: Codes, statistic: Callable[[Tensor], Tensor], end: int) -> None:
        self._codes = codes
        self._end = end
        self._statistic = statistic
        self._reaches: list[Tensor] = []

    def see(self, x: Tensor) -> Tensor:
        reach = self._statistic(x.detach().abs().flatten()).clamp_max(self._codes.ceiling)
        self._reaches.append(reach)
        return reach.clamp_min(_SMALLEST_REACH) / self._end

    def suggested(self) -> float | None:
        reach = float(torch.stack(self._reaches).mean()) if self._reaches else 0.0
        if not math.isfinite(reach) or reach <= 0:
            return None
        return 2.0 ** round(math.log2(max(reach, _SMALLEST_REACH) / self._end))


class _SmallestError:
    """The power of two whose codes are nearest to x in the mean of squares, over all batches."""

    def __init__(self, codes: Codes) -> None:
        self._codes = codes
        self._errors: dict[int, float] = {}  # by exponent of the scale
        self._is_finite = True

    def see(self, x: Tensor) -> Tensor:
        values = x.detach().flatten()
        values = values[:: max(1, values.numel() // _SAMPLE)].float().clamp_max(self._codes.ceiling)
        largest = float(values.abs().max())
        self._is_finite = self._is_finite and math.isfinite(largest)
        if self._is_finite and largest > 0:
            self._add_errors(values, largest)
        return x.new_tensor(self.suggested() or _SMALLEST_REACH)

    def suggested(self) -> float | None:
        if not self._errors or not self._is_finite:
            return None
        return 2.0 ** min(self._errors, key=lambda exponent: self._errors[exponent])

    def _add_errors(self, values: Tensor, largest: float) -> None:
        """The same candidates for all batches: from about the largest value of the first one downwards."""
        top = math.ceil(math.log2(max(largest, _SMALLEST_REACH)))
        for exponent in self._errors or range(top - _CANDIDATES, top + 1):
            scale = 2.0**exponent
            moved = self._codes.nearest(values / scale) * scale - values
            self._errors[exponent] = self._errors.get(exponent, 0.0) + float(moved.square().sum())
