"""The binomial and the normal distribution, as far as intervals and powers need them; a board has no SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

__all__ = ["binomial_cdf", "bisect", "check_probability", "normal_quantile", "two_sided_quantile"]

BISECTION_STEPS = 60  # halves an interval of 1 to below the spacing of doubles


def binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """P(X <= successes) for X binomial, as an incomplete beta integral: good to about 1e-12."""
    if successes < 0:
        return 0.0
    if successes >= trials:
        return 1.0
    return _incomplete_beta(trials - successes, successes + 1, 1 - rate)


def normal_quantile(probability: float) -> float:
    """The z that a standard normal variable stays below with `probability`; raises ValueError outside of (0, 1)."""
    check_probability("probability", probability)
    return NormalDist().inv_cdf(probability)


def two_sided_quantile(confidence: float) -> float:
    """The z within which a standard normal variable stays, on both sides, with probability `confidence`."""
    check_probability("confidence", confidence)
    return NormalDist().inv_cdf((1 + confidence) / 2)


def bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """Root of a function that is negative at `low` and positive at `high`."""
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b) by its continued fraction (DLMF 8.17.22), modified Lentz."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only on this side; the other is its complement
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Value of 1 + d1/(1 + d2/(1 + ...)) with the coefficients of DLMF 8.17.23; O(sqrt(max(a, b))) terms."""
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for term in range(1, 20_000):
        m = term // 2
        if term % 2:
            coefficient = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            coefficient = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + coefficient * d or tiny)
        c = 1 + coefficient / c or tiny
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def check_probability(name: str, value: float) -> None:
    """Raise ValueError for what is no probability strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} lies between 0 and 1, not at {value}")
