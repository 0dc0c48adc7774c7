"""The attack of Carlini and Wagner (2017, arXiv:1608.04644) in L2 through a deployed engine.

It goes down the squared length of a change plus a weight times the margin that is left, by Adam, and finds the weight
by itself: the weight rises where the label was never lost, and falls where it was lost too far away. The margin is
measured in standard deviations of the image's own clean logits, so that no scale of the logits matters.

Bytes are what is shown, straight-through the rounding, and what is inside the ball is what counts (see `looks`). The
box of valid bytes is kept by projection, not by tanh: under tanh a black pixel, which is what most pictures of digits
and clothes are made of, needs hundreds of steps to move at all.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.balls import Ball, ball_around, flat
from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.attacks.looks import GREY_LEVEL, Look, look
from hardbit_deploy.attacks.objectives import MARGIN
from hardbit_deploy.attacks.outcome import AttackOutcome
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine, Gradient
from hardbit_deploy.errors import HardbitError

__all__ = ["carlini_wagner"]

# How long the first steps of Adam are, which moves all values at one rate. Of 103 images of a small CNN 57 then survive
# three weights of 100 steps; at a quarter of it 64.
_FIRST_STEP = 0.7  # of eps
_DECAYS = 0.9, 0.999  # of Adam's two averages
_FIRST_WEIGHT = 10.0
_FACTOR = 10.0  # between weights, until one is too small and one too large
_PER_IMAGE = (
    "labels", "rows", "weight", "too_small", "too_large", "spread", "position", "mean", "square", "crossed",
)  # fmt: skip


def carlini_wagner(
    engine: Engine,
    gradient: Gradient,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    steps: int,
    binary_steps: int = 5,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width) with labels int64 (n,): `binary_steps` weights, `steps` each.

    Nothing is random. Raises HardbitError for another norm than L2.
    """
    if threat_model.norm != "l2":
        raise HardbitError(
            f"Carlini and Wagner's attack measures in L2, not in {threat_model.norm}",
            where="carlini_wagner",
            remedy="choose another attack, or a threat model in L2",
        )
    best = BestIterates(images, engine.classes)
    flight = engine.images_in_flight or max(len(images), 1)
    for first in range(0, len(images), flight):
        rows = np.arange(first, min(first + flight, len(images)))
        _Descent(engine, gradient, ball_around(images[rows], threat_model), labels[rows], rows, best).run(
            steps, binary_steps
        )
    return best.outcome


class _Descent:
    """Images that go down together; `rows` says where each of those that stand belongs in `best`."""

    def __init__(
        self,
        engine: Engine,
        gradient: Gradient,
        ball: Ball,
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        best: BestIterates,
    ) -> None:
        self.engine, self.gradient, self.best = engine, gradient, best
        self.ball, self.labels, self.rows = ball, labels, rows
        self.weight = np.full(len(rows), _FIRST_WEIGHT)
        self.too_small, self.too_large = np.zeros(len(rows)), np.full(len(rows), np.inf)
        self.rate_255 = _FIRST_STEP * ball.radius_255 / math.sqrt(math.prod(ball.images.shape[1:]))

    def run(self, steps: int, binary_steps: int) -> None:
        for _ in range(binary_steps):
            self._start()
            seen = self._look()
            spread = seen.logits.std(axis=1, dtype=np.float64)
            self.spread = np.where(spread > 0, spread, 1)
            for step in range(1, steps + 1):
                if not self.rows.size:
                    return
                self._move(seen, step)
                seen = self._look()
            self._choose_weight()

    def _start(self) -> None:
        """At the images, with Adam's averages empty."""
        self.position = np.zeros_like(self.ball.pixels)
        self.mean, self.square = np.zeros_like(self.position), np.zeros_like(self.position)
        self.crossed, self.spread = np.zeros(len(self.rows), np.bool_), np.ones(len(self.rows))

    def _move(self, seen: Look, step: int) -> None:
        """One step of Adam down the squared length, in units of the byte range, plus the weighted margin."""
        slope = self.position * np.float32(2 / 255)
        kept = np.flatnonzero(~seen.crossed)
        if kept.size:
            seeds = MARGIN.seeds(seen.logits[kept], self.labels[kept])
            upwards = flat(self.gradient.pullback(seen.shown[kept], seeds))
            upwards *= (self.weight[kept] / self.spread[kept] * 255 * GREY_LEVEL)[:, None].astype(np.float32)
            slope[kept] -= np.nan_to_num(upwards, copy=False, nan=0, posinf=0, neginf=0)
        first, second = _DECAYS
        self.mean += np.float32(1 - first) * (slope - self.mean)
        self.square += np.float32(1 - second) * (slope * slope - self.square)
        size = np.sqrt(self.square / np.float32(1 - second**step))
        size += np.float32(1e-8)
        self.position -= np.float32(self.rate_255 / (1 - first**step)) * self.mean / size
        self.position = self.ball.limit(self.position)

    def _look(self) -> Look:
        """What is seen of those that stand; the others are let go of."""
        seen = look(self.engine, self.ball, self.position, self.rows, self.labels, self.best)
        self.crossed |= seen.crossed
        chosen = seen.standing
        if chosen.all():
            return seen
        self.ball = self.ball.of(chosen)
        for name in _PER_IMAGE:
            setattr(self, name, getattr(self, name)[chosen])
        return seen.of(chosen)

    def _choose_weight(self) -> None:
        """Between one that was too small and one that was too large, on a logarithmic scale."""
        self.too_large = np.where(self.crossed, self.weight, self.too_large)
        self.too_small = np.where(self.crossed, self.too_small, self.weight)
        bounded = np.isfinite(self.too_large) & (self.too_small > 0)
        between = np.sqrt(np.where(bounded, self.too_large * self.too_small, 1))
        beyond = np.where(self.crossed, self.weight / _FACTOR, self.weight * _FACTOR)
        self.weight = np.where(bounded, between, beyond)
