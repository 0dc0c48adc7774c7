"""What the alarms count on one chunk of images.

Boundary: counts, never judges; limits and reasons are in `alarms`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attack_specs import parse_attack
from hardbit_deploy.attacks import ThreatModel, keeps_label, random_start
from hardbit_deploy.attacks.corruptions import KINDS, SEVERITIES, corrupt
from hardbit_deploy.attacks.pgd import start_stream
from hardbit_deploy.chunk_attacks import Attacks, WorstCase
from hardbit_deploy.engines.base import Engine
from hardbit_deploy.further_attacks import run_attack
from hardbit_deploy.suite import LOSSES, SMOOTH, Suite
from hardbit_deploy.victims import Victims, outside

__all__ = [
    "CORRUPTIONS",
    "NOISE",
    "bad_logits",
    "converged",
    "converged_queries",
    "corruptions",
    "curve",
    "curve_radii_255",
    "determinism",
    "difference",
    "feasible",
    "losses_left_out",
    "noise",
    "rolls_dice",
    "useless_gradients",
]

NOISE = parse_attack("random-100")  # on every image that FGSM and PGD left standing
CORRUPTIONS = tuple((kind, severity) for kind in KINDS for severity in SEVERITIES)
USUAL_SPREADS = 1e-3, 1e3  # of the logits of an image: beyond, float32 losses of other tools saturate or vanish


def bad_logits(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows that look like probabilities, rows that are not finite, rows of a strange scale, all rows."""
    finite = np.isfinite(logits).all(axis=1)
    probabilities = finite & (logits >= 0).all(axis=1) & (np.abs(logits.sum(axis=1, dtype=np.float64) - 1) < 1e-3)
    with np.errstate(invalid="ignore", over="ignore"):
        spread = logits.max(axis=1) - logits.min(axis=1)
        least, most = USUAL_SPREADS
        strange = finite & ~((spread >= least) & (spread <= most))
    return np.array([probabilities.sum(), (~finite).sum(), strange.sum(), len(logits)], np.int64)


def determinism(engine: Engine, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Images whose label changes between three runs, or one by one; all images."""
    runs = [engine.infer(images).argmax(axis=1) for _ in range(3)]
    runs.append(np.array([int(engine.infer(images[row : row + 1]).argmax()) for row in range(len(images))], np.int64))
    changed = np.zeros(len(images), np.bool_)
    for run in runs[1:]:
        changed |= run != runs[0]
    return np.array([changed.sum(), len(images)], np.int64)


def rolls_dice(engine: Engine, images: NDArray[np.uint8]) -> bool:
    """Whether a label changes between three runs of the same batch."""
    runs = [engine.infer(images).argmax(axis=1) for _ in range(3)]
    return not all(np.array_equal(run, runs[0]) for run in runs[1:])


def difference(engine: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Images, label flips, largest |logit difference|."""
    flips = np.count_nonzero(engine.argmax(axis=1) != other.argmax(axis=1))
    # Where both overflow alike, inf - inf is NaN: an unknown difference must not pass for a small one.
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.abs(engine - other).max(initial=0)
    largest = float(differences) if np.isfinite(differences) else float(np.finfo(np.float32).max)
    return np.array([len(engine), flips, largest], np.float64)


def feasible(engine: Engine, victims: Victims, threat_model: ThreatModel, best: WorstCase) -> NDArray[np.int64]:
    """Images outside of the ball, images of which the engine now says something else, all images."""
    leaves = outside(best.adversarial, victims.images, threat_model)
    logits = engine.infer(best.adversarial)
    prediction, survived = logits.argmax(axis=1), keeps_label(logits, victims.labels)
    otherwise = (survived != best.survived) | (prediction != best.prediction)
    return np.array([leaves.sum(), otherwise.sum(), len(victims)], np.int64)


def useless_gradients(
    attacks: Attacks, victims: Victims, clean_logits: NDArray[np.float32]
) -> dict[str, NDArray[np.int64]]:
    """By case: images, and those whose gradient is all zero or not finite; at the image and at a random start."""
    counts = {}
    engine, suite = attacks.target.engine, attacks.suite
    for surrogate, loss in suite.climbs:
        stream = start_stream(0, loss, surrogate)
        start = random_start(
            victims.images, attacks.threat_model, seed=suite.seed, stream=stream, indices=victims.indices
        )
        places = [("the image", victims.images, clean_logits), ("a random start", start, engine.infer(start))]
        for place, points, logits in places:
            gradient = attacks.gradient(surrogate).gradient(points, victims.labels, logits, loss)
            flat = gradient.reshape(len(points), math.prod(points.shape[1:]))
            useless = ~np.isfinite(flat).all(axis=1) | ~flat.any(axis=1)
            what = f"{loss} smooth" if surrogate == SMOOTH else loss
            counts[f"gradients/{what} at {place}"] = np.array([len(points), useless.sum()], np.int64)
    return counts


def curve_radii_255(suite: Suite, threat_model: ThreatModel, values_per_image: int) -> tuple[float, ...]:
    """The eps curve's radii, rising: multiples of eps up to the one at which an image can be made uniform grey."""
    grey = threat_model.grey_radius(values_per_image)
    multiples = {factor * threat_model.eps_255 for factor in suite.eps_factors}
    return (*sorted(radius for radius in multiples if 0 < radius < grey), grey)


def curve(
    attacks: Attacks, victims: Victims, clean: NDArray[np.bool_], radii_255: tuple[float, ...]
) -> NDArray[np.bool_]:
    """Survivors bool (radii, n) of PGD with the first loss, one restart and every surrogate, at every radius."""
    rows = np.flatnonzero(clean)
    survived = np.zeros((len(radii_255), len(victims)), np.bool_)
    for row, radius in enumerate(radii_255):
        standing = rows
        for surrogate in attacks.suite.surrogates:
            outcome = attacks.climb(victims.of(standing), surrogate, attacks.suite.losses[0], eps_255=radius)
            standing = standing[outcome.survived]
            attacks.report(len(victims) * attacks.suite.steps, 0, f"eps curve at {radius:g}/255")
        survived[row, standing] = True
    return survived


def converged(attacks: Attacks, victims: Victims, survived: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Survivors of the whole suite that fall to twice the steps from the same first starts; to one more start; all
    images."""
    standing, suite = victims.of(survived), attacks.suite
    fell = {"steps": np.zeros(len(standing), np.bool_), "restart": np.zeros(len(standing), np.bool_)}
    for surrogate, loss in suite.climbs:
        for what, steps, restart in (("steps", 2 * suite.steps, 0), ("restart", suite.steps, suite.restarts)):
            outcome = attacks.climb(standing, surrogate, loss, steps=steps, first_restart=restart)
            fell[what] |= ~outcome.survived
            attacks.report(len(victims) * steps, 0, "convergence")
    return np.array([fell["steps"].sum(), fell["restart"].sum(), len(victims)], np.int64)


def converged_queries(attacks: Attacks, victims: Victims, survived: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Survivors of the whole suite that fall to twice the queries of Square; all images."""
    outcome = attacks.square(victims.of(survived), 2 * attacks.suite.square_queries, "convergence of Square")
    return np.array([np.count_nonzero(~outcome.survived), len(victims)], np.int64)


def noise(attacks: Attacks, victims: Victims, standing: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Images that fall to the best of random points, of those that withstood gradients; all images."""
    outcome = run_attack(NOISE, attacks.surface, victims.of(standing), attacks.report_as("noise"))
    return np.array([np.count_nonzero(~outcome.survived), len(victims)], np.int64)


def losses_left_out(attacks: Attacks, victims: Victims, survived: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """By loss that the suite does not climb: survivors of the whole suite that fall to PGD with it; all images."""
    suite, counts = attacks.suite, {}
    for loss in suite.losses_left_out:
        standing = victims.of(survived)
        if loss in LOSSES:
            for surrogate in suite.surrogates:
                outcome = attacks.climb(standing, surrogate, loss)
                standing = standing.of(outcome.survived)
                attacks.report(len(victims) * suite.steps, 0, "losses")
        else:
            spec = parse_attack(f"pgd-{suite.steps} {loss}")
            outcome = run_attack(spec, attacks.surface, standing, attacks.report_as("losses"))
            standing = standing.of(outcome.survived)
        fell = np.count_nonzero(survived) - len(standing)
        counts[f"losses/{loss}"] = np.array([fell, len(victims)], np.int64)
    return counts


def corruptions(attacks: Attacks, victims: Victims) -> NDArray[np.bool_]:
    """Which images the engine gets right, bool (corruptions, n), under each of `CORRUPTIONS`."""
    kept = np.zeros((len(CORRUPTIONS), len(victims)), np.bool_)
    for row, (kind, severity) in enumerate(CORRUPTIONS):
        made = corrupt(victims.images, kind, severity, attacks.suite.seed, victims.indices)
        kept[row] = keeps_label(attacks.target.engine.infer(made), victims.labels)
        attacks.report(0, len(victims), "corruptions")
    return kept
