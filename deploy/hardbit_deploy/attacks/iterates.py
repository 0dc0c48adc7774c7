"""The images of a running attack: a shadow that moves in fractions of a grey level, and the bytes that are looked at.

Engine and gradient are only ever given bytes. A step may be smaller than one grey level (2.5 eps / k is 0.2 for eps
2/255 and 25 steps): moving the bytes themselves would then stand still or jump five times too far. So a shadow keeps
the position, and its rounding is what is scored and differentiated: straight-through the rounding, as it is for every
other quantizer. Rounded bytes are inside the ball always, not only at the end.

Boundary: geometry only; never asks an engine.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.threat_model import ThreatModel

__all__ = [
    "L2_SLACK",
    "Iterates",
    "L2Iterates",
    "LinfIterates",
    "iterates_from",
    "rounded_inside_l2",
    "shrink_rows",
    "squared_norms",
    "unit_rows",
]

# Keeps positions inside an L2 ball whatever float32 makes of their norms: truncated to bytes they are inside exactly.
L2_SLACK = 1 - 1e-4
_SHRINK_ROUNDS = 8
_SMALLEST_SQUARES = 1e-24
_EXACT_SQUARES = 2.0**24


class Iterates(ABC):
    """`bytes` uint8 (n, channels, height, width) are the images to look at."""

    bytes: NDArray[np.uint8]

    @abstractmethod
    def step(self, gradient: NDArray[np.float32], size_255: float) -> None:
        """Ascend by `size_255` grey levels in the steepest direction of the norm; may overwrite `gradient`.

        Rows without a usable direction (all zero, or not finite) stay where they are; single values that are not
        finite count as zero.
        """

    @abstractmethod
    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Forget all images but the chosen ones."""


def iterates_from(images: NDArray[np.uint8], start: NDArray[np.uint8], threat_model: ThreatModel) -> Iterates:
    """Iterates in the ball around `images`, at `start`, which must lie in it."""
    kind = LinfIterates if threat_model.norm == "linf" else L2Iterates
    return kind(images, start, threat_model.eps_255)


class LinfIterates(Iterates):
    """A box around every image. On bytes an eps of 2.7 grey levels is one of 2.

    The shadow is int16 in units of 1/64 grey level, which halves what has to be moved through memory: on small networks
    that is most of what an attack adds to the two graphs. Steps are rounded to that unit, and are at least one.
    """

    _UNIT = 64
    _SHIFT = 6

    def __init__(self, images: NDArray[np.uint8], start: NDArray[np.uint8], eps_255: float) -> None:
        radius = min(math.floor(eps_255), 255)
        centre = images.astype(np.int16)
        self.bytes = start.copy()
        self._shadow = start.astype(np.int16) * np.int16(self._UNIT)
        self._low = np.maximum(centre - np.int16(radius), 0) * np.int16(self._UNIT)
        self._high = np.minimum(centre + np.int16(radius), 255) * np.int16(self._UNIT)

    def step(self, gradient: NDArray[np.float32], size_255: float) -> None:
        # A step of 255 reaches the box's side from anywhere; longer ones would not fit in 16 bits.
        size = np.int16(max(1, round(min(size_255, 255.0) * self._UNIT)))
        # Two comparisons make a sign that is 0 for 0 and for NaN, faster than np.sign.
        rising, falling = np.greater(gradient, 0), np.less(gradient, 0)
        sign = np.subtract(rising.view(np.int8), falling.view(np.int8), out=rising.view(np.int8))
        move = np.multiply(sign, size, dtype=np.int16)
        np.add(self._shadow, move, out=self._shadow)
        np.maximum(self._shadow, self._low, out=self._shadow)
        np.minimum(self._shadow, self._high, out=self._shadow)
        np.add(self._shadow, np.int16(self._UNIT // 2), out=move)
        np.right_shift(move, np.int16(self._SHIFT), out=move)
        np.copyto(self.bytes, move, casting="unsafe")

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self.bytes = self.bytes[chosen]
        self._shadow, self._low, self._high = self._shadow[chosen], self._low[chosen], self._high[chosen]


class L2Iterates(Iterates):
    """A Euclidean ball around every image, cut by the box of valid bytes."""

    def __init__(self, images: NDArray[np.uint8], start: NDArray[np.uint8], eps_255: float) -> None:
        self.bytes = start.copy()
        self._eps_255 = eps_255
        shape = len(images), math.prod(images.shape[1:])
        self._image = images.reshape(shape).astype(np.float32)
        self._delta = start.reshape(shape).astype(np.float32) - self._image

    def step(self, gradient: NDArray[np.float32], size_255: float) -> None:
        flat = unit_rows(gradient.reshape(self._delta.shape))
        flat *= np.float32(size_255)
        self._delta += flat
        shrink_rows(self._delta, self._eps_255 * L2_SLACK)
        np.maximum(self._delta, -self._image, out=self._delta)
        np.minimum(self._delta, 255 - self._image, out=self._delta)
        rounded = rounded_inside_l2(self._delta, self._eps_255)
        rounded += self._image
        np.copyto(self.bytes.reshape(flat.shape), rounded, casting="unsafe")

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self.bytes, self._image, self._delta = self.bytes[chosen], self._image[chosen], self._delta[chosen]


def rounded_inside_l2(delta: NDArray[np.float32], radius_255: float | NDArray[np.float64]) -> NDArray[np.float32]:
    """Whole grey levels near `delta` (n, values), whose norms after rounding are at most `radius_255`, exactly.

    The radius is one for all or one for each row, (n,). `delta` must be inside the ball (times `L2_SLACK`). Rounding
    can lengthen a row; such rows are scaled down until their rounding fits, and truncated if eight rounds do not do
    it, which can only shorten.
    """
    rounded = np.rint(delta)
    squares = squared_norms(rounded)
    radii = np.broadcast_to(np.asarray(radius_255, np.float64), squares.shape)
    rows = np.flatnonzero(squares > radii**2)
    scale, squares, radii = np.ones(len(rows)), squares[rows], radii[rows]
    for _ in range(_SHRINK_ROUNDS):
        if not rows.size:
            return rounded
        scale *= radii / np.sqrt(squares)
        shorter = delta[rows]
        shorter *= scale[:, None].astype(np.float32)
        rounded[rows] = np.rint(shorter, out=shorter)
        squares = squared_norms(shorter)
        over = squares > radii**2
        rows, scale, squares, radii = rows[over], scale[over], squares[over], radii[over]
    rounded[rows] = np.trunc(delta[rows])
    return rounded


def squared_norms(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared Euclidean norms (n,) of rows (n, values); exact for rows of whole grey levels.

    Sums are made in float32, which is exact for integers up to 2^24, and again in float64 where they are above that or
    so small that squares have vanished, as they do in tiny gradients.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        products = np.matmul(rows[:, None, :], rows[:, :, None])
    squares: NDArray[np.float64] = products.reshape(len(rows)).astype(np.float64)
    doubtful = ~((squares > _SMALLEST_SQUARES) & (squares < _EXACT_SQUARES))
    if doubtful.any():
        chosen = rows[doubtful]
        squares[doubtful] = np.einsum("nd,nd->n", chosen, chosen, dtype=np.float64)
    return squares


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, values) scaled to length one, in place; zero where they are, and where nothing in them is finite."""
    squares = squared_norms(rows)
    if not np.isfinite(squares).all():
        np.nan_to_num(rows, copy=False, nan=0, posinf=0, neginf=0)
        squares = squared_norms(rows)
    norm = np.sqrt(squares)
    # The norm of a row of 1e-30 is a number, but its factor to a step size would not fit in float32.
    rows /= np.where(norm > 0, norm, 1)[:, None].astype(np.float32)
    return rows


def shrink_rows(delta: NDArray[np.float32], radius: float) -> None:
    """Scale rows (n, values) that are longer than `radius` down to it, in place."""
    squares = squared_norms(delta)
    over = squares > radius**2
    if over.any():
        delta *= np.where(over, radius / np.sqrt(np.maximum(squares, 1e-30)), 1)[:, None].astype(np.float32)
