"""Projected gradient descent (Madry et al. 2018) through a deployed engine.

Every step takes its logits from the engine and its direction from the attack graph at those logits. An image that the
engine gives another label on any iterate, the random start among them, has fallen: that iterate is kept, and the image
is neither moved nor restarted again.

Through the smooth surrogate the loss is taken at the engine's logits too, not at the surrogate's own: on a network of
2-bit weights and activations 65.0 % of 400 images then survive both losses, against 69.3 %; from 3 bits on there is no
difference.

Losses other than the attack graph's two are objectives (see `objectives`): their derivatives by the engine's logits are
pulled back through the graph.

Where the attack graph has been seen to compute the engine's very bits (`same_bits`), its logits stand for the engine's
within a climb, and one run does for two. The engine still decides: it confirms every fall, and judges the last iterate.
Whoever sets `same_bits` compares the two again on what was found.

An engine that can take all steps of a climb on its own device (`Engine.climber`) does so, and hands back the best
iterate of every image with its logits; `same_bits` then saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.attacks.iterates import iterates_from
from hardbit_deploy.attacks.objectives import OBJECTIVES, Objective
from hardbit_deploy.attacks.outcome import AttackOutcome, keeps_label
from hardbit_deploy.attacks.random_start import random_start
from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.engines.base import Climber, Engine, Gradient
from hardbit_deploy.suite import LOSSES, SMOOTH, STRAIGHT_THROUGH

__all__ = ["pgd", "start_stream", "step_size_255"]

_SMOOTH_STREAMS = 1 << 33
_OBJECTIVE_STREAMS = 1 << 34
STEP_FACTOR = 2.5  # steps can reach the far side of the ball and come back a little (Madry et al. 2018)


def step_size_255(threat_model: ThreatModel, steps: int) -> float:
    """The default step, 2.5 eps / k, in grey levels; it may be below one."""
    return STEP_FACTOR * threat_model.eps_255 / steps


def start_stream(restart: int, loss: str, surrogate: str = STRAIGHT_THROUGH) -> int:
    """The random stream of a restart: no two climbs share starting points, so that their union covers more."""
    apart = _SMOOTH_STREAMS if surrogate == SMOOTH else 0
    if loss in LOSSES:
        return restart * len(LOSSES) + LOSSES.index(loss) + apart
    return _OBJECTIVE_STREAMS + restart * len(OBJECTIVES) + list(OBJECTIVES).index(loss) + apart


def pgd(
    engine: Engine,
    gradient: Gradient,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threat_model: ThreatModel,
    *,
    steps: int,
    restarts: int = 1,
    loss: str = "cross_entropy",
    objective: Objective | None = None,
    surrogate: str = STRAIGHT_THROUGH,
    seed: int = 0,
    indices: NDArray[np.int64] | None = None,
    first_restart: int = 0,
    same_bits: bool = False,
    from_image: bool = False,
) -> AttackOutcome:
    """Attack images uint8 (n, channels, height, width) with labels int64 (n,).

    `indices` int64 (n,) are the images' places in their data set, which decide their random starts (default 0 to n-1);
    restarts are numbered from `first_restart`, so that one more can be added to an attack that was made before.
    `objective` takes the place of `loss`. `surrogate` says which one `gradient` is of.
    `same_bits` changes how fast the result is found, and nothing else where it is true; an objective makes no use
    of it. `from_image` starts at the image itself, as one does to compare attacks step by step: every restart is the
    same then.
    """
    count = len(images)
    places = np.arange(count, dtype=np.int64) if indices is None else indices
    best = BestIterates(images, engine.classes)
    climber = None if objective else engine.climber(gradient)
    flight = (climber or engine).images_in_flight or max(count, 1)
    for restart in range(first_restart, first_restart + restarts):
        standing = np.flatnonzero(best.outcome.survived)
        for first in range(0, len(standing), flight):
            rows = standing[first : first + flight]
            start = images[rows]
            if not from_image:
                stream = start_stream(restart, objective.name if objective else loss, surrogate)
                start = random_start(start, threat_model, seed=seed, stream=stream, indices=places[rows])
            if climber is not None:
                _climb_on_device(climber, images[rows], labels[rows], start, rows, threat_model, steps, loss, best)
                continue
            step = _step(engine, gradient, loss, objective, same_bits)
            _climb(engine, step, images[rows], labels[rows], start, rows, threat_model, steps, best)
    return best.outcome


# Logits of images with labels, and a function that gives the gradient of a choice of them.
_Gradient = Callable[[NDArray[np.bool_]], NDArray[np.float32]]
_GradientAt = Callable[[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]], NDArray[np.float32]]
_Step = Callable[[NDArray[np.uint8], NDArray[np.int64]], tuple[NDArray[np.float32], _Gradient]]


def _step(engine: Engine, gradient: Gradient, loss: str, objective: Objective | None, same_bits: bool) -> _Step:
    if objective is not None:
        seeds = objective.seeds
        return _two_runs(engine, lambda images, labels, logits: gradient.pullback(images, seeds(logits, labels)))
    if same_bits:
        return _single_run(engine, gradient, loss)
    return _two_runs(engine, lambda images, labels, logits: gradient.gradient(images, labels, logits, loss))


def _two_runs(engine: Engine, gradient_at: _GradientAt) -> _Step:
    """Logits of the engine, then a direction at them for those that still stand."""

    def step(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[NDArray[np.float32], _Gradient]:
        logits = engine.infer(images)

        def direction(standing: NDArray[np.bool_]) -> NDArray[np.float32]:
            if standing.all():
                return gradient_at(images, labels, logits)
            return gradient_at(images[standing], labels[standing], logits[standing])

        return logits, direction

    return step


def _single_run(engine: Engine, gradient: Gradient, loss: str) -> _Step:
    """Logits and direction of the attack graph; images that seem to fall are shown to the engine, which is believed."""

    def step(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[NDArray[np.float32], _Gradient]:
        logits, directions = gradient.ascend(images, labels, loss)
        suspects = np.flatnonzero(~keeps_label(logits, labels))
        if suspects.size:
            logits[suspects] = engine.infer(images[suspects])
        return logits, lambda standing: directions if standing.all() else directions[standing]

    return step


def _climb_on_device(
    climber: Climber,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    start: NDArray[np.uint8],
    rows: NDArray[np.int64],
    threat_model: ThreatModel,
    steps: int,
    loss: str,
    best: BestIterates,
) -> None:
    """One restart: the best iterate of every image stands for all of them."""
    found, logits = climber.climb(
        images,
        start,
        labels,
        norm=threat_model.norm,
        eps_255=threat_model.eps_255,
        steps=steps,
        size_255=step_size_255(threat_model, steps),
        loss=loss,
    )
    best.judge(rows, found, logits, labels)


def _climb(
    engine: Engine,
    step_from: _Step,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    start: NDArray[np.uint8],
    rows: NDArray[np.int64],
    threat_model: ThreatModel,
    steps: int,
    best: BestIterates,
) -> None:
    """One restart: `rows` says where each image belongs in `best`."""
    iterates = iterates_from(images, start, threat_model)
    size_255 = step_size_255(threat_model, steps)
    for _ in range(steps):
        logits, direction = step_from(iterates.bytes, labels)
        standing = best.judge(rows, iterates.bytes, logits, labels)
        if not standing.any():
            return
        gradient = direction(standing)
        if not standing.all():
            rows, labels = rows[standing], labels[standing]
            iterates.keep(standing)
        iterates.step(gradient, size_255)
    best.judge(rows, iterates.bytes, engine.infer(iterates.bytes), labels)
