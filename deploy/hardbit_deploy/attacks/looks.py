"""How an attack that may leave the ball on its way is judged: where it stands, and at the nearest point of the ball.

Attacks that look for the nearest decision boundary learn most from points which may lie beyond eps. What the engine
says of such a point shows the way, and is no candidate; the nearest point of the ball is one, and is judged in its
stead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.balls import Ball
from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.attacks.outcome import keeps_label
from hardbit_deploy.engines.base import Engine

__all__ = ["GREY_LEVEL", "Look", "look"]

GREY_LEVEL = np.float32(1 / 256)  # of a network's input: turns a derivative by it into one by a byte


@dataclass(frozen=True)
class Look:
    """`shown` uint8 (n, channels, height, width) and the engine's `logits` there; `crossed`: it gives another label;
    `standing`: no point inside the ball has fooled it."""

    shown: NDArray[np.uint8]
    logits: NDArray[np.float32]
    crossed: NDArray[np.bool_]
    standing: NDArray[np.bool_]

    def of(self, rows: NDArray[np.bool_]) -> Look:
        """What was seen of some of the images."""
        return Look(self.shown[rows], self.logits[rows], self.crossed[rows], self.standing[rows])


def look(
    engine: Engine,
    ball: Ball,
    positions: NDArray[np.float32],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    best: BestIterates,
) -> Look:
    """Ask about positions float32 (n, values) anywhere in the box of valid bytes; `rows` are their images in `best`."""
    shown, inside = ball.shown(positions)
    logits = engine.infer(shown)
    standing = np.ones(len(rows), np.bool_)
    if inside.any():
        standing[inside] = best.judge(rows[inside], shown[inside], logits[inside], labels[inside])
    if not inside.all():
        nearer = ball.of(~inside)
        candidates = nearer.shown_inside(nearer.project(positions[~inside]))
        standing[~inside] = best.judge(rows[~inside], candidates, engine.infer(candidates), labels[~inside])
    return Look(shown, logits, ~keeps_label(logits, labels), standing)
