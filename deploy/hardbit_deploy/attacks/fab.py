"""FAB-T (Croce and Hein 2020, arXiv:1907.02044) through a deployed engine: along the nearest decision boundary.

Each step takes the boundary towards one other class for a plane, goes onto it and a little beyond, from where it is
and, for a share, from the image itself; a point that has crossed goes back a tenth of its way. So it stays near the
boundary and comes nearer to the image. It needs no step size, and hardly minds how steep the loss is.

It is judged as every attack here: on bytes, inside the ball (see `looks`). An image that falls is left alone; that
still smaller changes might have fooled the engine, too, is of no interest to a threat model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.balls import Ball, ball_around, flat
from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.attacks.looks import GREY_LEVEL, Look, look
from hardbit_deploy.attacks.objectives import logit_difference
from hardbit_deploy.attacks.outcome import AttackOutcome
from hardbit_deploy.attacks.planes import step_to_plane, visible
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.attacks.targets import best_other_classes
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine, Gradient

__all__ = ["fab"]

_STREAM = 3 << 34  # apart from those of other attacks' random starts
_BEYOND = 1.05  # how far over the plane
_MOST_FROM_IMAGE = 0.1  # greatest share of the step that starts at the image
_BACK = 0.9  # what is left of the way of a point that has crossed


def fab(
    engine: Engine,
    gradient: Gradient,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    steps: int,
    targets: int = 9,
    restarts: int = 1,
    seed: int = 0,
    indices: NDArray[np.int64] | None = None,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width) with labels int64 (n,), in L-inf and L2.

    `targets` other classes are tried, those with the greatest logits on the image first. The first walk to each starts
    at the image, further restarts at random points half as far as eps, which `seed` and `indices` (the images' places
    in their data set, int64 (n,), default 0 to n-1) decide.
    """
    count = len(images)
    places = np.arange(count, dtype=np.int64) if indices is None else indices
    best = BestIterates(images, engine.classes)
    others = best_other_classes(engine, images, labels, targets, best)
    flight = engine.images_in_flight or max(count, 1)
    for walk in range(restarts * others.shape[1]):
        standing = np.flatnonzero(best.outcome.survived)
        for first in range(0, len(standing), flight):
            rows = standing[first : first + flight]
            start = images[rows]
            if walk % restarts:
                half = threat_model.at(threat_model.eps_255 / 2)
                start = random_start(start, half, seed=seed, stream=_STREAM + walk, indices=places[rows])
            ball = ball_around(images[rows], threat_model)
            _Walk(engine, gradient, ball, labels[rows], others[rows, walk // restarts], rows, best).run(start, steps)
    return best.outcome


class _Walk:
    """Images that walk together; `rows` says where each of those that stand belongs in `best`."""

    def __init__(
        self,
        engine: Engine,
        gradient: Gradient,
        ball: Ball,
        labels: NDArray[np.int64],
        targets: NDArray[np.int64],
        rows: NDArray[np.int64],
        best: BestIterates,
    ) -> None:
        self.engine, self.gradient, self.best = engine, gradient, best
        self.ball, self.labels, self.targets, self.rows = ball, labels, targets, rows

    def run(self, start: NDArray[np.uint8], steps: int) -> None:
        self.position = flat(start) - self.ball.pixels
        seen = self._look()
        for step in range(steps):
            if not self.rows.size:
                return
            self._move(seen)
            seen = self._look()
            if step + 1 < steps and seen.crossed.any():
                self.position[seen.crossed] *= np.float32(_BACK)
                seen = self._look()

    def _move(self, seen: Look) -> None:
        norm, pixels, position = self.ball.norm, self.ball.pixels, self.position
        seeds = logit_difference(seen.logits, self.targets, self.labels)
        slopes = flat(self.gradient.pullback(seen.shown, seeds)) * GREY_LEVEL
        missing = -np.einsum("nc,nc->n", seeds, seen.logits, dtype=np.float64)
        missing_at_image = missing + np.einsum("nv,nv->n", slopes, position, dtype=np.float64)
        from_here = step_to_plane(norm, slopes, missing, pixels + position)
        from_image = step_to_plane(norm, slopes, missing_at_image, pixels)
        way, whole = self.ball.lengths(from_here), self.ball.lengths(from_image)
        total = np.where(way + whole > 0, way + whole, 1)
        share = np.minimum(way / total, _MOST_FROM_IMAGE)[:, None].astype(np.float32)
        from_here *= np.float32(_BEYOND)
        from_here = visible(from_here) + position
        from_image *= np.float32(_BEYOND)
        self.position = self.ball.limit((1 - share) * from_here + share * from_image)

    def _look(self) -> Look:
        """What is seen of those that stand; the others are let go of."""
        seen = look(self.engine, self.ball, self.position, self.rows, self.labels, self.best)
        chosen = seen.standing
        if chosen.all():
            return seen
        self.ball, self.position = self.ball.of(chosen), self.position[chosen]
        self.labels, self.targets, self.rows = self.labels[chosen], self.targets[chosen], self.rows[chosen]
        return seen.of(chosen)
