"""Named checks on an evaluation: reasons to doubt that its numbers are the whole truth.

Each takes counts, compares one number with one threshold, and says in its reason what it saw. Any alarm makes a verdict
INCONCLUSIVE. What is counted on a few hundred images cannot be held to half a point exactly; there a check raises its
alarm only when the counts show, at 95 % confidence, that the limit is passed. Each check says which of both it does.

Boundary: judges counts; what produces them is in `chunk`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hardbit_deploy.network_bits import NetworkBits
from hardbit_deploy.statistics import clopper_pearson, mcnemar_exact

__all__ = [
    "ACCEPTABLE",
    "Alarm",
    "CurvePoint",
    "converged",
    "determinism",
    "eps_curve",
    "feasible",
    "gradients",
    "iterative_beats_one_step",
    "logits",
    "parity",
    "surrogates",
    "white_box_beats_black_box",
    "white_box_beats_transfer",
]

ACCEPTABLE = (
    "gradients",
    "iterative_beats_one_step",
    "surrogates",
    "white_box_beats_black_box",
    "white_box_beats_transfer",
    "eps_curve",
    "converged",
)
"""Alarms that speak of how strong attacks are on a network: a gate may know of them (see `known_alarms`). The others
say that the measurement itself is broken."""

PARITY_LEAST = 0.99
LOGITS_LIMIT = 0.01
GRADIENTS_LIMIT = 0.05
HALF_A_POINT = 0.005
ONE_POINT = 0.01
FEW_IMAGES = 2  # that Square may fool alone whatever their share, for chance has its part in a random search
CURVE_SIGNIFICANCE = 0.01
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Alarm:
    """One check: `value` against `threshold`, and why; `not_run` where there was nothing to count."""

    name: str
    status: Literal["pass", "alarm", "not_run"]
    value: float | None
    threshold: float | None
    reason: str

    def to_document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "value": self.value,
            "threshold": self.threshold,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class CurvePoint:
    """Survivors at one eps, and how they changed against the next smaller eps on the same images."""

    eps_255: float
    survivors: int
    lost: int  # survived the smaller eps, fell at this one
    gained: int  # fell at the smaller eps, survived this one: should not happen


def parity(agreements: Sequence[tuple[str, int, int]]) -> Alarm:
    """Engine and twins give the same label to at least 99 % of clean and of adversarial images.

    `agreements` are (name, images, label flips). Below, directions come from another network than the one attacked, and
    a white-box number is in truth one of transfer.
    """
    seen = [(1 - flips / images, name, images, flips) for name, images, flips in agreements if images]
    if not seen:
        return _not_run("parity", PARITY_LEAST, "no twin to compare with")
    value, name, images, flips = min(seen)
    reason = f"least agreement is with {name}: {flips} of {images} labels differ"
    return _judged("parity", value < PARITY_LEAST, value, PARITY_LEAST, reason)


def determinism(changed: int, images: int) -> Alarm:
    """The same images three times, and one by one: no label may change."""
    if not images:
        return _not_run("determinism", 0, "no images")
    reason = f"{changed} of {images} labels changed between three runs, or between batch 1 and a larger one"
    return _judged("determinism", changed > 0, changed, 0, reason)


def logits(probability_rows: int, broken_rows: int, images: int) -> Alarm:
    """Rows are logits: neither probabilities, whose differences vanish where a network is sure, nor infinite or NaN."""
    if not images:
        return _not_run("logits", LOGITS_LIMIT, "no images")
    value = max(probability_rows, broken_rows) / images
    reason = f"{probability_rows} of {images} rows are probabilities, {broken_rows} are not finite"
    return _judged("logits", broken_rows > 0 or value > LOGITS_LIMIT, value, LOGITS_LIMIT, reason)


def gradients(cases: Sequence[tuple[str, int, int]]) -> Alarm:
    """At most 5 % of images have an all-zero or non-finite input gradient, in the worst of the `cases`.

    `cases` are (what, images, images without a usable gradient), for every loss, at the image and at a random start.
    """
    seen = [(useless / images, what, images, useless) for what, images, useless in cases if images]
    if not seen:
        return _not_run("gradients", GRADIENTS_LIMIT, "no images that the engine gets right")
    value, what, images, useless = max(seen)
    reason = f"worst case is {what}: {useless} of {images} gradients are all zero or not finite"
    return _judged("gradients", value > GRADIENTS_LIMIT, value, GRADIENTS_LIMIT, reason)


def iterative_beats_one_step(missed: int, images: int) -> Alarm:
    """PGD fools what FGSM fools, to half a point of the images (or one image, where half a point is less)."""
    if not images:
        return _not_run("iterative_beats_one_step", HALF_A_POINT, "no images")
    reason = f"{missed} of {images} images are fooled by FGSM and by no PGD"
    over = missed > max(1, int(HALF_A_POINT * images))
    return _judged("iterative_beats_one_step", over, missed / images, HALF_A_POINT, reason)


def eps_curve(points: Sequence[CurvePoint], images: int, largest_class: int) -> Alarm:
    """Accuracy falls with eps, and is at chance where every image can be turned into uniform grey (the last point).

    A rise counts if the exact McNemar test of two neighbours finds it (p < 1 %). At uniform grey an attacker reaches
    one image for all, so that at most the images of one class survive: more survivors than the largest class has is
    above chance, if the lower end of their exact interval says so too.
    """
    if not images or not points:
        return _not_run("eps_curve", None, "no images")
    last = points[-1]
    chance = largest_class / images
    value = last.survivors / images
    at_end = f"{last.survivors} of {images} survive eps {last.eps_255:g}/255, where at most {largest_class} should"
    for smaller, point in itertools.pairwise(points):
        if point.gained > point.lost and mcnemar_exact(point.lost, point.gained) < CURVE_SIGNIFICANCE:
            reason = (
                f"accuracy rises from {smaller.survivors} to {point.survivors} of {images} "
                f"between eps {smaller.eps_255:g} and {point.eps_255:g}/255"
            )
            return _judged("eps_curve", True, (point.gained - point.lost) / images, 0, reason)
    above = clopper_pearson(last.survivors, images, 2 * CONFIDENCE - 1)[0] > chance
    return _judged("eps_curve", above, value, chance, f"accuracy falls with eps; {at_end}" if not above else at_end)


def feasible(outside: int, rescored_otherwise: int, images: int) -> Alarm:
    """Every adversarial image, as bytes, is inside the eps ball, and the engine says of it what was recorded."""
    if not images:
        return _not_run("feasible", 0, "no adversarial images")
    reason = f"{outside} of {images} adversarial images leave the eps ball, {rescored_otherwise} score otherwise again"
    return _judged("feasible", outside + rescored_otherwise > 0, outside + rescored_otherwise, 0, reason)


def converged(gains: Sequence[tuple[str, int, int]]) -> Alarm:
    """Twice the steps, one more restart, or twice the queries of Square, gain less than half a point.

    `gains` are (what there is more of, survivors of the whole suite that fall then, images). The alarm is raised when
    the exact one-sided 95 % lower bound of one of them is above half a point: 6 of 512 images, 16 of 2,000. A suite
    that has not converged gains many points; a sample of hundreds cannot tell half a point from one, and says so in its
    reason.
    """
    bounds = [
        (clopper_pearson(fell, images, 2 * CONFIDENCE - 1)[0], fell / images) for _, fell, images in gains if images
    ]
    if not bounds:
        return _not_run("converged", HALF_A_POINT, "no images")
    bound, value = max(bounds)
    each = ", ".join(f"{what} {fell} of {images}" for what, fell, images in gains if images)
    reason = f"fooled in addition by {each}; the gain is at least {100 * bound:.2f} points"
    return _judged("converged", bound > HALF_A_POINT, value, HALF_A_POINT, reason)


def white_box_beats_black_box(alone: int, images: int, bits: NetworkBits, *, was_run: bool) -> Alarm:
    """Images that Square fools and no gradient does: at most 1 %, or two.

    Square sees no gradient, so what it finds alone was hidden from those that do. Where activations have 3 bits and
    fewer, a suite without Square is an alarm by itself.
    """
    name = "white_box_beats_black_box"
    if not images:
        return _not_run(name, ONE_POINT, "no images")
    if not was_run:
        reason = f"Square was not run, and with {bits.fewest_of_activations}-bit activations gradients mislead"
        return (
            _missing(name, ONE_POINT, reason) if bits.need_queries else _not_run(name, ONE_POINT, "Square was not run")
        )
    reason = f"{alone} of {images} images are fooled by Square and by no attack that uses gradients"
    return _judged(name, alone > max(FEW_IMAGES, ONE_POINT * images), alone / images, ONE_POINT, reason)


def white_box_beats_transfer(alone: Mapping[str, int], images: int) -> Alarm:
    """Images made on another network that fool this one, where no gradient of its own does: at most 1 %.

    `alone` counts them for each source, and under "all" for all sources together.
    """
    name = "white_box_beats_transfer"
    if not images or not alone:
        return _not_run(name, ONE_POINT, "no images" if alone else "the bundle holds no images of other networks")
    count = alone["all"]
    each = ", ".join(f"{source} {number}" for source, number in alone.items() if source != "all")
    reason = f"{count} of {images} images are fooled by transfer and by no attack that uses gradients ({each})"
    return _judged(name, count > max(1, ONE_POINT * images), count / images, ONE_POINT, reason)


def surrogates(alone: Mapping[str, int], images: int, bits: NetworkBits) -> Alarm:
    """Below 4 bits gradients through both surrogates are needed; their union is used.

    `alone` counts, for each surrogate that was used, the images that gradients through it fool and no others do.
    """
    if not images:
        return _not_run("surrogates", None, "no images")
    if len(alone) < 2:
        reason = f"only the gradient through the {next(iter(alone))} surrogate was used"
        if bits.need_both_surrogates:
            return _missing("surrogates", None, f"{reason}, and the network has layers of {bits.fewest} bits")
        return _not_run("surrogates", None, reason)
    each = ", ".join(f"{number} through the {surrogate} one alone" for surrogate, number in alone.items())
    reason = f"of {images} images gradients fool {each}; their union is used"
    return _judged("surrogates", False, max(alone.values()) / images, None, reason)


def _judged(name: str, raised: bool, value: float, threshold: float | None, reason: str) -> Alarm:
    return Alarm(name, "alarm" if raised else "pass", float(value), threshold, reason)


def _missing(name: str, threshold: float | None, reason: str) -> Alarm:
    """What should have been run and was not."""
    return Alarm(name, "alarm", None, threshold, reason)


def _not_run(name: str, threshold: float | None, reason: str) -> Alarm:
    return Alarm(name, "not_run", None, threshold, reason)
