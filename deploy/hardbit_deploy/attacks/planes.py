"""The shortest step onto a plane within the box of valid bytes: where a linear classifier changes its mind.

Both norms have one form. Along the shortest step every value moves at its speed until it meets an end of the byte
range: all at the same speed in L-inf, each at its own slope in L2. What is gained rises with the way, piecewise linear
and ever more slowly, so that Newton's method from the left meets the answer after finitely many pieces.

Boundary: geometry only; never asks an engine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.threat_model import Norm

__all__ = ["distance_to_plane", "step_to_plane", "visible"]

_ROUNDS = 60
_CLOSE = 1e-6
_HALF, _TINY = 0.51, 1e-30  # above a half, which is rounded to the nearest even number


def step_to_plane(
    norm: Norm, slopes: NDArray[np.float32], missing: NDArray[np.float64], pixels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Steps float32 (n, values) with slopes . steps = missing, as short as can be, for `pixels` in [0, 255].

    `slopes` are (n, values), `missing` (n,), in any unit. Where the box has no such point the step goes as far as it
    can. Rows without a slope that is finite, or with nothing missing, stay.
    """
    usable = np.where(np.isfinite(slopes), slopes, 0)
    greatest = np.abs(usable).max(axis=1, initial=0)
    scale = np.where(greatest > 0, greatest, 1)
    upwards = usable / (scale * np.where(missing < 0, -1, 1))[:, None].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = np.nan_to_num(np.abs(missing) / scale.astype(np.float64))
    weights = np.abs(upwards)
    speeds = weights if norm == "l2" else (weights > 0).astype(np.float32)
    room = np.where(upwards > 0, 255 - pixels, pixels)
    way = np.zeros(len(slopes))
    for _ in range(_ROUNDS):
        ahead = speeds * way[:, None].astype(np.float32)
        lacking = wanted - _row_sums(weights, np.minimum(ahead, room))
        rate = _row_sums(weights, np.where(ahead < room, speeds, 0))
        going = (lacking > _CLOSE * wanted) & (rate > 0)
        if not going.any():
            break
        way[going] += lacking[going] / rate[going]
    steps: NDArray[np.float32] = np.sign(upwards) * np.minimum(speeds * way[:, None].astype(np.float32), room)
    return steps


def visible(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Steps (n, values), lengthened where need be until their greatest value is half a grey level.

    Shorter ones may not change a byte, and what is seen to change nothing is done again and again.
    """
    greatest = np.abs(steps).max(axis=1, initial=0)
    factor = np.where((greatest > 0) & (greatest < _HALF), _HALF / np.maximum(greatest, _TINY), 1)
    return steps * factor[:, None].astype(np.float32)


def distance_to_plane(norm: Norm, slopes: NDArray[np.float32], missing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths (n,) of the shortest steps onto planes where there is no box; infinite where there is no slope."""
    usable = np.where(np.isfinite(slopes), slopes, 0).astype(np.float64)
    dual = np.abs(usable).sum(axis=1) if norm == "linf" else np.sqrt(_row_sums(usable, usable))
    distance: NDArray[np.float64] = np.divide(np.abs(missing), dual, out=np.full(len(dual), np.inf), where=dual > 0)
    return distance


def _row_sums(left: NDArray[np.floating], right: NDArray[np.floating]) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.einsum("nv,nv->n", left, right).astype(np.float64)
    return sums
