"""The scale of least squared error, of a histogram of activations and of a channel of weights.

Rounding to a few codes errs less in sum when the rarest, largest numbers are cut off: a finer scale serves the many.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["least_squares_range", "least_squares_weight_scale"]

_SHARES = np.linspace(0.05, 1, 96)
_ROUNDS = 2


def least_squares_range(counts: NDArray[np.integer], edges: NDArray[np.floating], levels: int) -> tuple[float, float]:
    """The (low, high) around 0 whose `levels` codes hold a histogram's values with the least squared error.

    `counts` (bins,), `edges` (bins + 1,). Each end is searched in turn among shares of the farthest value on its side.
    """
    seen = np.flatnonzero(counts)
    if not len(seen):
        return 0.0, 0.0
    centres = ((edges[:-1] + edges[1:]) / 2).astype(np.float64)[seen]
    weights = counts[seen].astype(np.float64)
    lowest = min(float(edges[seen[0]]), 0.0) if centres[0] < 0 else 0.0
    highest = max(float(edges[seen[-1] + 1]), 0.0) if centres[-1] > 0 else 0.0
    shares = np.array([1.0, 1.0])  # of lowest and of highest
    for _ in range(_ROUNDS):
        for end in (0, 1):
            trials = np.tile(shares, (len(_SHARES), 1))
            trials[:, end] = _SHARES
            errors = [_error(centres, weights, low * lowest, high * highest, levels) for low, high in trials]
            shares = trials[int(np.argmin(errors))]
    return float(shares[0] * lowest), float(shares[1] * highest)


def _error(centres: NDArray[np.float64], weights: NDArray[np.float64], low: float, high: float, levels: int) -> float:
    scale = (high - low) / (levels - 1)
    if scale <= 0:
        return float(weights @ centres**2)
    zero_point = np.rint(-low / scale)
    codes = np.clip(np.rint(centres / scale) + zero_point, 0, levels - 1)
    return float(weights @ ((codes - zero_point) * scale - centres) ** 2)


def least_squares_weight_scale(weights: NDArray[np.float32], largest: int) -> NDArray[np.float32]:
    """One scale for each row of `weights` (channels, values): codes from -largest to largest err least."""
    peaks = np.abs(weights).max(axis=1).astype(np.float64)
    best, least = peaks / largest, np.full(len(weights), np.inf)
    for share in _SHARES[15:]:
        scale = np.maximum(peaks * share / largest, np.finfo(np.float32).tiny)[:, None]
        errors = ((np.clip(np.rint(weights / scale), -largest, largest) * scale - weights) ** 2).sum(axis=1)
        better = errors < least
        best, least = np.where(better, scale[:, 0], best), np.where(better, errors, least)
    return best.astype(np.float32)
