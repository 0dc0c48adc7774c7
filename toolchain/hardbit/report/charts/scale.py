"""Scales from data to pixels, and the round numbers at which an axis is marked."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LinearScale", "LogScale", "linear_ticks", "log_ticks"]

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class LinearScale:
    """Maps `low`..`high` of the data onto `start`..`end` of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clamped(self, value: float) -> float:
        """The place of `value`, or of the end of the scale that it lies beyond."""
        return self(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class LogScale:
    """The same with equal ratios at equal distances; data must be positive."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + math.log(value / self.low) / math.log(self.high / self.low) * (self.end - self.start)


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within [low, high], `about` of them at most, two at least."""
    if not high > low:
        return [low]
    span = high - low
    exponent = math.floor(math.log10(span / max(about, 1)))
    for power in range(exponent, exponent + 3):
        for step in STEPS:
            size = step * 10.0**power
            first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
            if last - first + 1 <= max(about, 2):
                return [index * size for index in range(first, last + 1)]
    return [low, high]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
