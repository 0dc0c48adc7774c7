"""Auto-PGD (Croce and Hein 2020, arXiv:2003.01690) through a deployed engine: an ascent that finds its own step size.

An image starts with steps of twice the radius and a quarter of momentum. At checkpoints that come ever closer, an image
whose objective rose in at most three steps of four, or which has found nothing better although its step was left as it
was, goes back to its best position with half the step. The objective decides where to go, and the engine's label alone
what has fallen: every iterate is judged on its bytes, so that no point counts which the engine would forgive.

The derivative by the logits is the objective's at the engine's logits. With `targets` the objective is the targeted
DLR, in one climb for each of the best other classes (APGD-T).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.balls import Ball, ball_around, flat
from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.attacks.objectives import CROSS_ENTROPY, Objective, targeted_dlr
from hardbit_deploy.attacks.outcome import AttackOutcome
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.attacks.targets import best_other_classes
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Engine, Gradient

__all__ = ["apgd", "checkpoints"]

_STREAM = 1 << 35  # apart from those of other attacks' random starts
_MOMENTUM = 0.25
_ENOUGH_RISES = 0.75  # of the steps since the last checkpoint


def apgd(
    engine: Engine,
    gradient: Gradient,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    steps: int,
    restarts: int = 1,
    objective: Objective = CROSS_ENTROPY,
    targets: int = 0,
    seed: int = 0,
    indices: NDArray[np.int64] | None = None,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width) with labels int64 (n,).

    `indices` int64 (n,) are the images' places in their data set, which decide their random starts (default 0 to n-1).
    `targets` is how many of the other classes are tried, those with the greatest logits on the image itself first; each
    costs `restarts` climbs of `steps` steps. An image that has fallen is left alone.
    """
    count = len(images)
    places = np.arange(count, dtype=np.int64) if indices is None else indices
    best = BestIterates(images, engine.classes)
    chosen = best_other_classes(engine, images, labels, targets, best) if targets else None
    flight = engine.images_in_flight or max(count, 1)
    for climb in range(restarts * max(1, 0 if chosen is None else chosen.shape[1])):
        standing = np.flatnonzero(best.outcome.survived)
        for first in range(0, len(standing), flight):
            rows = standing[first : first + flight]
            start = random_start(images[rows], threat_model, seed=seed, stream=_STREAM + climb, indices=places[rows])
            aim = objective if chosen is None else targeted_dlr(chosen[rows, climb // restarts])
            ball = ball_around(images[rows], threat_model)
            _Climb(engine, gradient, ball, labels[rows], rows, aim, best).run(start, steps)
    return best.outcome


def checkpoints(steps: int) -> Iterator[int]:
    """The steps, counted from 1, after which step sizes are looked at: windows of 22 % of all, then 3 % less each, down
    to 6 %."""
    window, less, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    step = window
    while step <= steps:
        yield step
        window = max(window - less, least)
        step += window


class _Climb:
    """Images that climb together; `rows` says where each of those that stand belongs in `best`."""

    _PER_IMAGE = (
        "labels", "rows", "position", "previous", "step_size", "value", "slope",
        "best_position", "best_value", "best_slope", "rises", "checked_value", "was_halved",
    )  # fmt: skip

    def __init__(
        self,
        engine: Engine,
        gradient: Gradient,
        ball: Ball,
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        objective: Objective,
        best: BestIterates,
    ) -> None:
        self.engine, self.gradient, self.best = engine, gradient, best
        self.ball, self.objective, self.labels, self.rows = ball, objective, labels, rows

    def run(self, start: NDArray[np.uint8], steps: int) -> None:
        count = len(self.rows)
        self.position = flat(start) - self.ball.pixels
        self.previous = self.position
        self.step_size = np.full((count, 1), 2 * self.ball.radius_255, np.float32)
        self.value, self.slope = np.full(count, -np.inf), np.zeros_like(self.position)
        self.best_position, self.best_slope = self.position.copy(), self.slope.copy()
        self.best_value = self.checked_value = self.value
        self.rises, self.was_halved = np.zeros(count, np.int64), np.ones(count, np.bool_)
        self._look(last=steps == 0)
        self.rises[:] = 0
        self.checked_value = self.best_value.copy()
        checked, window_start = set(checkpoints(steps)), 0
        for step in range(1, steps + 1):
            if not self.rows.size:
                return
            self._move(1.0 if step == 1 else 1 - _MOMENTUM)
            self._look(last=step == steps)
            if step in checked:
                self._check(step - window_start)
                window_start = step

    def _move(self, share: float) -> None:
        """Along the slope, and on in the direction of the last step by what `share` leaves."""
        ball, position = self.ball, self.position
        ahead = ball.direction(self.slope.copy())
        ahead *= self.step_size
        ahead += position
        ahead = ball.project(ahead)
        ahead -= position
        ahead *= np.float32(share)
        ahead += np.float32(1 - share) * (position - self.previous)
        ahead += position
        self.previous, self.position = position, ball.project(ahead)

    def _look(self, *, last: bool) -> None:
        """Judge the iterates, let go of what has fallen, and take values and slopes of the others."""
        shown = self.ball.shown_inside(self.position)
        logits = self.engine.infer(shown)
        standing = self.best.judge(self.rows, shown, logits, self.labels)
        if not standing.all():
            self._keep(standing)
            shown, logits = shown[standing], logits[standing]
        if last or not self.rows.size:
            return
        value = self.objective.values(logits, self.labels)
        self.slope = flat(self.gradient.pullback(shown, self.objective.seeds(logits, self.labels)))
        self.rises += value > self.value
        self.value = value
        better = value > self.best_value
        self.best_value = np.where(better, value, self.best_value)
        self.best_position[better] = self.position[better]
        self.best_slope[better] = self.slope[better]

    def _check(self, window: int) -> None:
        """Halve the steps of images that do not get on, and put these back to where they were best."""
        stuck = ~self.was_halved & (self.checked_value >= self.best_value)
        halved = (self.rises <= _ENOUGH_RISES * window) | stuck
        self.step_size[halved] /= 2
        self.position[halved] = self.best_position[halved]
        self.slope[halved] = self.best_slope[halved]
        self.was_halved, self.checked_value = halved, self.best_value.copy()
        self.rises[:] = 0

    def _keep(self, chosen: NDArray[np.bool_]) -> None:
        """Forget all images but the chosen ones."""
        for name in self._PER_IMAGE:
            setattr(self, name, getattr(self, name)[chosen])
        self.ball, self.objective = self.ball.of(chosen), self.objective.of(chosen)
