"""Intervals, paired comparisons, gates: what a count of surviving images allows one to say.

Every rate is a count with an interval, every comparison is paired per image, every gate is one-sided non-inferiority.
Pure functions of counts on numpy and the standard library; nothing here knows of engines, attacks or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.distributions import binomial_cdf, bisect, check_probability, two_sided_quantile
from hardbit_deploy.sample_size import (
    CLOSEST,
    images_needed_for_estimate,
    images_needed_paired_noninferiority,
    images_needed_rate,
)

__all__ = [
    "NoninferiorityResult",
    "PairedComparison",
    "bootstrap_over_processes",
    "clopper_pearson",
    "clopper_pearson_upper",
    "compare_paired",
    "holm",
    "mcnemar_exact",
    "noninferiority_paired",
    "noninferiority_rate",
    "tango_interval",
    "wilson_interval",
]

# --- one rate ------------------------------------------------------------------------------------------------------


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a rate (Wilson 1927); Clopper-Pearson at 0 and at `trials` successes.

    The score interval degenerates towards the ends; there the exact one is short and never too optimistic.
    A one-sided bound at confidence c is the corresponding end of the two-sided interval at 2c - 1.
    """
    _check_counts(successes, trials)
    if successes in (0, trials):
        return clopper_pearson(successes, trials, confidence)
    z = two_sided_quantile(confidence)
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half_width = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    return centre - half_width, centre + half_width


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided exact interval of a rate (Clopper & Pearson 1934): it covers the truth at least as often as it says."""
    _check_counts(successes, trials)
    check_probability("confidence", confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else bisect(lambda p: 1 - binomial_cdf(successes - 1, trials, p) - tail, 0.0, 1.0)
    high = 1.0 if successes == trials else bisect(lambda p: tail - binomial_cdf(successes, trials, p), 0.0, 1.0)
    return low, high


def clopper_pearson_upper(successes: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided exact upper bound of a rate: 0 of 10,000 means less than 0.03 %."""
    return clopper_pearson(successes, trials, 2 * confidence - 1)[1]


# --- two outcomes for the same images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedComparison:
    """Two systems judged on the same images; `difference` is candidate minus baseline."""

    images: int
    lost: int  # right under the baseline, wrong under the candidate
    gained: int  # the other way round
    difference: float
    interval: tuple[float, float]  # two-sided, Tango's score interval
    p_value: float  # exact McNemar, two-sided

    @property
    def discordance(self) -> float:
        """Share of images on which the two disagree: what decides how much a paired test can see."""
        return (self.lost + self.gained) / self.images


def compare_paired(
    baseline: NDArray[np.bool_], candidate: NDArray[np.bool_], confidence: float = 0.95
) -> PairedComparison:
    """Compare two outcomes per image, arrays of shape (images,) in the same order."""
    if baseline.shape != candidate.shape or baseline.ndim != 1 or not baseline.size:
        raise ValueError(f"paired outcomes need one entry per image: shapes {baseline.shape} and {candidate.shape}")
    images = int(baseline.size)
    lost = int(np.count_nonzero(baseline & ~candidate))
    gained = int(np.count_nonzero(candidate & ~baseline))
    return PairedComparison(
        images=images,
        lost=lost,
        gained=gained,
        difference=(gained - lost) / images,
        interval=tango_interval(gained, lost, images, confidence),
        p_value=mcnemar_exact(lost, gained),
    )


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact McNemar p-value: under equality each discordant image falls on either side like a fair coin."""
    discordant = lost + gained
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * binomial_cdf(min(lost, gained), discordant, 0.5))


def tango_interval(gained: int, lost: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of (gained - lost)/images for paired rates: Tango, Statistics in Medicine 17 (1998) 891.

    It inverts the score test with the nuisance parameter at its constrained maximum likelihood, so it stays honest
    with few or no discordant images, where the usual Wald interval has no width.
    """
    if gained < 0 or lost < 0 or images <= 0 or gained + lost > images:
        raise ValueError(f"no such counts: {gained} gained and {lost} lost among {images} images")
    z = two_sided_quantile(confidence)
    estimate = (gained - lost) / images
    low = -1.0 if lost == images else bisect(lambda d: z - _tango_score(gained, lost, images, d), -1.0, estimate)
    high = 1.0 if gained == images else bisect(lambda d: -z - _tango_score(gained, lost, images, d), estimate, 1.0)
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of several p-values (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


# --- gates: one-sided non-inferiority ------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoninferiorityResult:
    """What a non-inferiority test saw: pass above the line for sure, fail below it for sure, else inconclusive."""

    status: str  # "pass", "fail" or "inconclusive"
    estimate: float
    lower_bound: float  # one-sided
    upper_bound: float  # one-sided
    line: float  # what the lower bound must exceed: reference - margin, or -margin for a difference
    images: int
    images_needed: int | None  # to decide with the power asked for; None when no number of images would do


def noninferiority_rate(
    successes: int, trials: int, reference: float, margin: float, confidence: float = 0.95, power: float = 0.8
) -> NoninferiorityResult:
    """Is a rate no worse than a promised `reference`, less `margin`?

    The bounds are Wilson's, so `confidence` is nominal: close to it from some hundreds of images on, some points off it
    with ten. With few images only a large distance from the line decides. `images_needed` is the number at which a
    system exactly as good as promised passes with `power`; where that many were used and the estimate still lies too
    near to the line, the number for the estimate seen.
    """
    line = reference - margin
    low, high = wilson_interval(successes, trials, 2 * confidence - 1)
    needed: int | None = images_needed_rate(reference, margin, confidence, power)
    status = _side_of(line, low, high)
    if status == "inconclusive" and needed is not None and trials >= needed:
        needed = images_needed_for_estimate(successes / trials, line, confidence, power)
    return NoninferiorityResult(status, successes / trials, low, high, line, trials, needed)


def noninferiority_paired(
    comparison: PairedComparison, margin: float, confidence: float = 0.95, power: float = 0.8
) -> NoninferiorityResult:
    """Is the candidate no worse than the baseline, less `margin`, on the same images?

    Bounds are the ends of Tango's interval. `images_needed` assumes two systems equally good that disagree on as many
    images as was seen (on one image at least: a discordance of zero would ask for nothing).
    """
    low, high = tango_interval(comparison.gained, comparison.lost, comparison.images, 2 * confidence - 1)
    discordance = max(comparison.discordance, 1 / comparison.images)
    needed: int | None = images_needed_paired_noninferiority(discordance, margin, confidence, power)
    status = _side_of(-margin, low, high)
    if status == "inconclusive" and needed is not None and comparison.images >= needed:
        distance = abs(comparison.difference + margin)
        needed = None
        if distance >= CLOSEST:
            needed = images_needed_paired_noninferiority(discordance, distance, confidence, power)
    return NoninferiorityResult(status, comparison.difference, low, high, -margin, comparison.images, needed)


# --- timings --------------------------------------------------------------------------------------------------------


def bootstrap_over_processes(
    samples: Sequence[NDArray[np.floating[Any]]],
    statistic: Callable[[NDArray[np.floating[Any]]], float],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of pooled timings when whole processes are drawn again, with replacement.

    Queries of one process share its memory layout and its luck; drawing single queries would call them independent
    and give an interval far too short.
    """
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(samples), (resamples, len(samples)))
    values = [statistic(np.concatenate([samples[i] for i in draw])) for draw in draws]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


# --- the mathematics below ------------------------------------------------------------------------------------------


def _side_of(line: float, low: float, high: float) -> str:
    if low > line:
        return "pass"
    return "fail" if high < line else "inconclusive"


def _tango_score(gained: int, lost: int, images: int, difference: float) -> float:
    """Score statistic of `difference`: equations 5 and 6 of Tango 1998; it falls as `difference` rises."""
    distance = gained - lost - images * difference
    a = 2 * images
    b = -gained - lost + (2 * images - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    nuisance = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # P(lost) under this difference
    variance = images * (2 * nuisance + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _check_counts(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials or trials <= 0:
        raise ValueError(f"{successes} successes of {trials} trials are no count")
