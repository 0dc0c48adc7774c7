"""The further attacks of a suite: each spec run by the attack that it names, on images that still stand.

Attacks that use gradients go through every surrogate in turn, the next one on what the last left standing. An attack
that sees labels only is shown labels only; what it found is then shown to the engine once more, for its logits.

Boundary: makes attacks; which images are given to them, and what their results mean, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attack_specs import AttackSpec
from hardbit_deploy.attacks import AttackOutcome, ThreatModel, keeps_label, margins, pgd
from hardbit_deploy.attacks.apgd import apgd
from hardbit_deploy.attacks.carlini_wagner import carlini_wagner
from hardbit_deploy.attacks.deepfool import deepfool
from hardbit_deploy.attacks.fab import fab
from hardbit_deploy.attacks.hopskipjump import hopskipjump
from hardbit_deploy.attacks.nes import nes
from hardbit_deploy.attacks.objectives import OBJECTIVES
from hardbit_deploy.attacks.query_climb import queries_of_climb
from hardbit_deploy.attacks.random_search import random_search
from hardbit_deploy.attacks.spsa import SAMPLES, spsa
from hardbit_deploy.engines.base import Engine, Gradient
from hardbit_deploy.victims import Victims

__all__ = ["Surface", "run_attack", "steps_and_queries"]

BINARY_STEPS = 5  # of Carlini and Wagner's search for the weight of the distance
CANDIDATES = 9  # other classes that DeepFool looks at in every step
SLICE = 64  # images after which an attack that uses gradients tells how far it is, or as many as fly together

Report = Callable[[int, int], None]  # steps and queries made since the last call, as if no image fell


@dataclass(frozen=True)
class Surface:
    """What an attack meets: the engine, its gradients by surrogate, the ball, and the seed of all that is drawn."""

    engine: Engine
    gradients: Mapping[str, Gradient]
    threat_model: ThreatModel
    seed: int = 0


def steps_and_queries(spec: AttackSpec, classes: int, surrogates: int) -> tuple[int, int]:
    """About what one image costs that never falls, in steps of PGD and queries of Square: for progress.

    What an attack does besides asking counts too: as seen on a small CNN, within a factor of two.
    """
    if not spec.is_white_box:
        asked = queries_of_climb(spec.effort, SAMPLES) if spec.kind in ("spsa", "nes") else spec.effort
        return 0, asked * _QUERY_COSTS[spec.kind]
    return _steps(spec, classes) * surrogates * _STEP_COSTS[spec.kind], 0


def _steps(spec: AttackSpec, classes: int) -> int:
    """Of one image through one surrogate."""
    climbs = spec.effort * spec.restarts * max(1, spec.targets_of(classes))
    if spec.kind == "deepfool":
        return climbs * min(CANDIDATES, classes - 1)
    return climbs * BINARY_STEPS if spec.kind == "carlini_wagner" else climbs


# Times of a step of PGD, and of a query of Square, with all that goes with it: projections, offsets that are drawn.
_STEP_COSTS = {"pgd": 1, "apgd": 1, "fab": 3, "deepfool": 1, "carlini_wagner": 1}
_QUERY_COSTS = {"spsa": 1, "nes": 2, "random": 1, "hopskipjump": 2}


def run_attack(spec: AttackSpec, surface: Surface, victims: Victims, report: Report = lambda *_: None) -> AttackOutcome:
    """The outcome of `spec` on images that the engine gets right."""
    if spec.is_white_box:
        return _through_every_surrogate(spec, surface, victims, report)
    cost = _QUERY_COSTS[spec.kind]
    return _BLACK_BOX[spec.kind](spec, surface, victims, lambda queries: report(0, queries * cost))


def _through_every_surrogate(spec: AttackSpec, surface: Surface, victims: Victims, report: Report) -> AttackOutcome:
    best = _untouched(surface.engine, victims)
    steps, _ = steps_and_queries(spec, surface.engine.classes, surrogates=1)
    for surrogate, gradient in surface.gradients.items():
        standing = np.flatnonzero(best.survived)
        for rows in _slices(standing, max(SLICE, surface.engine.images_in_flight or 0)):
            found = _WHITE_BOX[spec.kind](spec, surface, surrogate, gradient, victims.of(rows))
            _take(best, rows, found)
            report(steps * len(rows), 0)
        report(steps * (len(victims) - len(standing)), 0)
    return best


def _untouched(engine: Engine, victims: Victims) -> AttackOutcome:
    count = len(victims)
    return AttackOutcome(
        victims.images.copy(),
        np.ones(count, np.bool_),
        np.zeros((count, engine.classes), np.float32),
        np.full(count, np.inf, np.float32),
    )


def _take(best: AttackOutcome, rows: NDArray[np.int64], found: AttackOutcome) -> None:
    """Keep what `found` says of the images `rows` where it is worse for them."""
    better = ~found.survived | (found.margin < best.margin[rows])
    places = rows[better]
    best.adversarial[places] = found.adversarial[better]
    best.logits[places] = found.logits[better]
    best.margin[places] = found.margin[better]
    best.survived[places] = found.survived[better]


def _slices(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


# --- attacks that use gradients --------------------------------------------------------------------------------------


def _pgd(spec: AttackSpec, on: Surface, surrogate: str, gradient: Gradient, victims: Victims) -> AttackOutcome:
    return pgd(
        on.engine,
        gradient,
        victims.images,
        victims.labels,
        on.threat_model,
        steps=spec.effort,
        restarts=spec.restarts,
        objective=OBJECTIVES[spec.objective or ""],
        surrogate=surrogate,
        seed=on.seed,
        indices=victims.indices,
    )


def _apgd(spec: AttackSpec, on: Surface, surrogate: str, gradient: Gradient, victims: Victims) -> AttackOutcome:
    return apgd(
        on.engine,
        gradient,
        victims.images,
        victims.labels,
        on.threat_model,
        steps=spec.effort,
        restarts=spec.restarts,
        objective=OBJECTIVES[spec.objective or ""],
        targets=spec.targets_of(on.engine.classes),
        seed=on.seed,
        indices=victims.indices,
    )


def _fab(spec: AttackSpec, on: Surface, surrogate: str, gradient: Gradient, victims: Victims) -> AttackOutcome:
    return fab(
        on.engine,
        gradient,
        victims.images,
        victims.labels,
        on.threat_model,
        steps=spec.effort,
        restarts=spec.restarts,
        targets=spec.targets_of(on.engine.classes),
        seed=on.seed,
        indices=victims.indices,
    )


def _carlini_wagner(
    spec: AttackSpec, on: Surface, surrogate: str, gradient: Gradient, victims: Victims
) -> AttackOutcome:
    return carlini_wagner(
        on.engine,
        gradient,
        victims.images,
        victims.labels,
        on.threat_model,
        steps=spec.effort,
        binary_steps=BINARY_STEPS,
    )


def _deepfool(spec: AttackSpec, on: Surface, surrogate: str, gradient: Gradient, victims: Victims) -> AttackOutcome:
    return deepfool(
        on.engine, gradient, victims.images, victims.labels, on.threat_model, steps=spec.effort, candidates=CANDIDATES
    )


_WHITE_BOX: Mapping[str, Callable[[AttackSpec, Surface, str, Gradient, Victims], AttackOutcome]] = {
    "pgd": _pgd,
    "apgd": _apgd,
    "fab": _fab,
    "carlini_wagner": _carlini_wagner,
    "deepfool": _deepfool,
}


# --- attacks that ask -------------------------------------------------------------------------------------------------

_Told = Callable[[int], None]


def _climb(attack: Callable[..., AttackOutcome]) -> Callable[[AttackSpec, Surface, Victims, _Told], AttackOutcome]:
    def run(spec: AttackSpec, on: Surface, victims: Victims, report: _Told) -> AttackOutcome:
        return attack(
            on.engine,
            victims.images,
            victims.labels,
            on.threat_model,
            steps=spec.effort,
            samples=SAMPLES,
            seed=on.seed,
            indices=victims.indices,
            report=report,
        )

    return run


def _random(spec: AttackSpec, on: Surface, victims: Victims, report: _Told) -> AttackOutcome:
    return random_search(
        on.engine,
        victims.images,
        victims.labels,
        on.threat_model,
        points=spec.effort,
        seed=on.seed,
        indices=victims.indices,
        report=report,
    )


def _hopskipjump(spec: AttackSpec, on: Surface, victims: Victims, report: _Told) -> AttackOutcome:
    def decide(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        logits = on.engine.infer(images)
        # A row that is not finite names no label; argmax would give the place of the NaN, which may be the right one.
        labels: NDArray[np.int64] = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
        return labels

    found = hopskipjump(
        decide,
        victims.images,
        victims.labels,
        on.threat_model,
        queries=spec.effort,
        seed=on.seed,
        indices=victims.indices,
        report=report,
    )
    logits = on.engine.infer(found.adversarial)
    margin = margins(logits, victims.labels)
    survived = found.survived & keeps_label(logits, victims.labels, margin)
    return AttackOutcome(found.adversarial, survived, logits, margin, found.queries)


_BLACK_BOX: Mapping[str, Callable[[AttackSpec, Surface, Victims, _Told], AttackOutcome]] = {
    "spsa": _climb(spsa),
    "nes": _climb(nes),
    "random": _random,
    "hopskipjump": _hopskipjump,
}
