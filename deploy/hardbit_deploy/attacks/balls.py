"""The ball around images as positions in it: where an attack may be, and which bytes it shows there.

A position is float32 (n, values), in grey levels away from the image; what an engine is shown is rounded to bytes,
straight-through the rounding (see `iterates`, whose positions serve steps of one fixed length, and are faster).

Boundary: geometry only; never asks an engine.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.iterates import L2_SLACK, rounded_inside_l2, shrink_rows, squared_norms, unit_rows
from hardbit_deploy.attacks.threat_model import Norm, ThreatModel

__all__ = ["Ball", "ball_around", "flat"]

Positions = NDArray[np.float32]


def ball_around(images: NDArray[np.uint8], threat_model: ThreatModel) -> Ball:
    """The balls around images uint8 (n, channels, height, width)."""
    if threat_model.norm == "l2":
        return _L2Ball(images, threat_model.eps_255)
    return _LinfBall(images, min(math.floor(threat_model.eps_255), 255))


def flat(images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, values) of images; no copy of what is float32 already."""
    return images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float32, copy=False)


class Ball(ABC):
    """One ball for each image, cut by the box of valid bytes."""

    norm: Norm

    def __init__(self, images: NDArray[np.uint8], radius_255: float) -> None:
        self.images = images
        self.radius_255 = radius_255
        self.pixels = flat(images)

    @abstractmethod
    def project(self, positions: Positions) -> Positions:
        """Move positions into ball and box, in place."""

    @abstractmethod
    def direction(self, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        """The steepest direction of length one, (n, values), of a gradient that may be overwritten: zero where it says
        nothing, or nothing finite."""

    @abstractmethod
    def lengths(self, positions: Positions) -> NDArray[np.float64]:
        """Norms (n,), exact for whole grey levels."""

    @abstractmethod
    def shown_inside(self, positions: Positions) -> NDArray[np.uint8]:
        """The bytes of positions that `project` left, exactly inside the ball."""

    def shown(self, positions: Positions) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The bytes of positions anywhere in the box, and whether they are inside the ball."""
        rounded = np.rint(positions)
        return self.bytes_of(rounded), self.lengths(rounded) <= self.radius_255

    def limit(self, positions: Positions) -> Positions:
        """Move positions into the box of valid bytes, in place."""
        np.maximum(positions, -self.pixels, out=positions)
        return np.minimum(positions, 255 - self.pixels, out=positions)

    def of(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Ball:
        """The balls of some of the images."""
        return type(self)(self.images[rows], self.radius_255)

    def bytes_of(self, rounded: Positions) -> NDArray[np.uint8]:
        """Images at positions of whole grey levels in the box."""
        return (rounded + self.pixels).astype(np.uint8).reshape(self.images.shape)


class _LinfBall(Ball):
    """The radius is a whole number: on bytes an eps of 2.7 grey levels is one of 2."""

    norm = "linf"

    def project(self, positions: Positions) -> Positions:
        np.maximum(positions, -self.radius_255, out=positions)
        np.minimum(positions, self.radius_255, out=positions)
        return self.limit(positions)

    def direction(self, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.greater(gradient, 0).astype(np.float32) - np.less(gradient, 0)

    def lengths(self, positions: Positions) -> NDArray[np.float64]:
        lengths: NDArray[np.float64] = np.abs(positions).max(axis=1, initial=0).astype(np.float64)
        return lengths

    def shown_inside(self, positions: Positions) -> NDArray[np.uint8]:
        return self.bytes_of(np.rint(positions))


class _L2Ball(Ball):
    norm = "l2"

    def project(self, positions: Positions) -> Positions:
        shrink_rows(positions, self.radius_255 * L2_SLACK)
        return self.limit(positions)

    def direction(self, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit_rows(gradient)

    def lengths(self, positions: Positions) -> NDArray[np.float64]:
        return np.sqrt(squared_norms(positions))

    def shown_inside(self, positions: Positions) -> NDArray[np.uint8]:
        return self.bytes_of(rounded_inside_l2(positions, self.radius_255))
