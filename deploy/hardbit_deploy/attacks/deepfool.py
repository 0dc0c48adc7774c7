"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599) through a deployed engine: to the nearest boundary.

Each step takes the engine for linear where it stands: it looks how far away the boundary towards each of the likeliest
other classes is, and goes to the nearest one. An image stops where its label changes. It has fallen if that is inside
the ball, on bytes (see `looks`). Values that meet an end of the byte range stay there; the next step makes up for them,
from gradients that are closer to the boundary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.balls import Ball, ball_around, flat
from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.attacks.looks import GREY_LEVEL, Look, look
from hardbit_deploy.attacks.objectives import logit_difference
from hardbit_deploy.attacks.outcome import AttackOutcome
from hardbit_deploy.attacks.planes import distance_to_plane, visible
from hardbit_deploy.attacks.targets import best_others
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine, Gradient

__all__ = ["deepfool"]

_BEYOND = 1.02  # how far over a boundary


def deepfool(
    engine: Engine,
    gradient: Gradient,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    steps: int,
    candidates: int = 9,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width) with labels int64 (n,), in L-inf and L2.

    Every step makes `candidates` vector-Jacobian products for each image, one for each of the other classes with the
    greatest logits where it stands. Nothing is random.
    """
    best = BestIterates(images, engine.classes)
    flight = engine.images_in_flight or max(len(images), 1)
    for first in range(0, len(images), flight):
        rows = np.arange(first, min(first + flight, len(images)))
        ball = ball_around(images[rows], threat_model)
        position = np.zeros_like(ball.pixels)
        for step in range(steps + 1):
            seen = look(engine, ball, position, rows, labels[rows], best)
            going = seen.standing & ~seen.crossed
            if step == steps or not going.any():
                break
            ball, rows, position = ball.of(going), rows[going], position[going]
            position = _moved(gradient, ball, position, labels[rows], seen.of(going), candidates)
    return best.outcome


def _moved(
    gradient: Gradient,
    ball: Ball,
    position: NDArray[np.float32],
    labels: NDArray[np.int64],
    seen: Look,
    candidates: int,
) -> NDArray[np.float32]:
    """Positions on the nearest plane, and a little beyond."""
    others = best_others(seen.logits, labels, candidates)
    count, tried = others.shape
    logits, shown = np.repeat(seen.logits, tried, axis=0), np.repeat(seen.shown, tried, axis=0)
    seeds = logit_difference(logits, others.ravel(), np.repeat(labels, tried))
    slopes = flat(gradient.pullback(shown, seeds)) * GREY_LEVEL
    missing = -np.einsum("nc,nc->n", seeds, logits, dtype=np.float64)
    distances = distance_to_plane(ball.norm, slopes, missing).reshape(count, tried)
    nearest = np.arange(count) * tried + distances.argmin(axis=1)
    step = ball.direction(slopes[nearest] * np.sign(missing[nearest])[:, None].astype(np.float32))
    way = distances[np.arange(count), distances.argmin(axis=1)]
    step *= np.where(np.isfinite(way), _BEYOND * way, 0)[:, None].astype(np.float32)
    return ball.limit(position + visible(step))
