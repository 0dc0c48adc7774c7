"""The images of a running attack: a float32 shadow that moves, and the bytes that are looked at.

Engine and gradient are only ever given bytes. A step may be smaller than one grey level (2.5 eps / k is 0.2 for eps
2/255 and 25 steps): moving the bytes themselves would then stand still or jump five times too far. So the shadow keeps
the exact position, and its rounding is what is scored and differentiated: straight-through the rounding, as it is for
every other quantizer. Rounded bytes are inside the ball always, not only at the end.

Boundary: geometry only; never asks an engine.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.threat_model import ThreatModel

__all__ = ["Iterates", "L2Iterates", "LinfIterates", "iterates_from", "rounded_inside_l2"]

# Keeps float32 positions strictly inside an L2 ball, so that truncated to whole grey levels they are inside exactly.
_L2_SLACK = 1 - 1e-6
_SHRINK_ROUNDS = 8


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
    """A box around every image. On bytes an eps of 2.7 grey levels is one of 2."""

    def __init__(self, images: NDArray[np.uint8], start: NDArray[np.uint8], eps_255: float) -> None:
        radius = min(math.floor(eps_255), 255)
        self.bytes = start.copy()
        self._shadow = start.astype(np.float32)
        self._low = np.maximum(images.astype(np.float32) - radius, 0)
        self._high = np.minimum(images.astype(np.float32) + radius, 255)

    def step(self, gradient: NDArray[np.float32], size_255: float) -> None:
        # Two comparisons make a sign that is 0 for 0 and for NaN, faster than np.sign.
        rising, falling = np.greater(gradient, 0), np.less(gradient, 0)
        sign = np.subtract(rising.view(np.int8), falling.view(np.int8), out=rising.view(np.int8))
        np.multiply(sign, np.float32(size_255), out=gradient)
        self._shadow += gradient
        np.maximum(self._shadow, self._low, out=self._shadow)
        np.minimum(self._shadow, self._high, out=self._shadow)
        np.rint(self._shadow, out=gradient)
        np.copyto(self.bytes, gradient, casting="unsafe")

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self.bytes = self.bytes[chosen]
        self._shadow, self._low, self._high = self._shadow[chosen], self._low[chosen], self._high[chosen]


class L2Iterates(Iterates):
    """A Euclidean ball around every image, cut by the box of valid bytes."""

    def __init__(self, images: NDArray[np.uint8], start: NDArray[np.uint8], eps_255: float) -> None:
        self.bytes = start.copy()
        self._eps_255 = eps_255
        self._image = images.reshape(len(images), -1).astype(np.float32)
        self._delta = start.reshape(len(images), -1).astype(np.float32) - self._image

    def step(self, gradient: NDArray[np.float32], size_255: float) -> None:
        flat = gradient.reshape(len(gradient), -1)
        norm = _norms(flat)
        if not np.isfinite(norm).all():
            np.nan_to_num(flat, copy=False, nan=0, posinf=0, neginf=0)
            norm = _norms(flat)
        # Divide first: a gradient of 1e-30 has a norm, but its factor to the step size would not fit in float32.
        np.divide(flat, norm[:, None], out=flat, where=norm[:, None] > 0, casting="unsafe")
        flat *= np.float32(size_255)
        self._delta += flat
        _shrink_rows(self._delta, self._eps_255 * _L2_SLACK)
        np.maximum(self._delta, -self._image, out=self._delta)
        np.minimum(self._delta, 255 - self._image, out=self._delta)
        rounded = rounded_inside_l2(self._delta, self._eps_255)
        rounded += self._image
        np.copyto(self.bytes.reshape(len(flat), -1), rounded, casting="unsafe")

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        self.bytes, self._image, self._delta = self.bytes[chosen], self._image[chosen], self._delta[chosen]


def rounded_inside_l2(delta: NDArray[np.float32], eps_255: float) -> NDArray[np.float32]:
    """Whole grey levels near `delta` (n, values), whose norms after rounding are at most `eps_255`, exactly.

    `delta` must be inside the ball (times 1 - 1e-6). Rounding can lengthen a row; such rows are scaled down until their
    rounding fits, and truncated if eight rounds do not do it, which can only shorten.
    """
    rounded = np.rint(delta)
    scale = np.ones(len(delta))
    for _ in range(_SHRINK_ROUNDS):
        norm = _norms(rounded)
        over = norm > eps_255
        if not over.any():
            return rounded
        scale[over] *= eps_255 / norm[over]
        rounded[over] = np.rint(delta[over] * scale[over, None].astype(np.float32))
    over = _norms(rounded) > eps_255
    rounded[over] = np.trunc(delta[over])
    return rounded


def _shrink_rows(delta: NDArray[np.float32], radius: float) -> None:
    norm = _norms(delta)
    over = norm > radius
    if over.any():
        delta[over] *= (radius / norm[over, None]).astype(np.float32)


def _norms(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean norms, summed in float64: squares of bytes sum exactly, and of tiny gradients do not vanish."""
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.sqrt(squares)
