"""Named checks on an evaluation: reasons to doubt that its numbers are the whole truth.

Each takes counts, compares one number with one threshold, and says in its reason what it saw. Any alarm makes a verdict
INCONCLUSIVE. What is counted on a few hundred images cannot be held to half a point exactly; there a check raises its
alarm only when the counts show, at 95 % confidence, that the limit is passed. Each check says which of both it does.

Boundary: judges counts; what produces them is in `chunk`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hardbit_deploy.alarm import CONFIDENCE, HALF_A_POINT, Alarm, judged, not_run
from hardbit_deploy.statistics import clopper_pearson, mcnemar_exact

__all__ = [
    "CurvePoint",
    "converged",
    "determinism",
    "eps_curve",
    "feasible",
    "gradients",
    "logits",
    "parity",
]

PARITY_LEAST = 0.99
LOGITS_LIMIT = 0.01
GRADIENTS_LIMIT = 0.05
CURVE_SIGNIFICANCE = 0.01


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
        return not_run("parity", PARITY_LEAST, "no twin to compare with")
    value, name, images, flips = min(seen)
    reason = f"least agreement is with {name}: {flips} of {images} labels differ"
    return judged("parity", value < PARITY_LEAST, value, PARITY_LEAST, reason)


def determinism(changed: int, images: int, *, gradient_draws: int = 1) -> Alarm:
    """The same images three times, and one by one: no label may change.

    An engine that rolls dice is attacked along gradients that are averaged over `gradient_draws`.
    """
    if not images:
        return not_run("determinism", 0, "no images")
    reason = f"{changed} of {images} labels changed between three runs, or between batch 1 and a larger one"
    if gradient_draws > 1:
        reason += f"; gradients are means of {gradient_draws} draws, and one draw that fails is a fall"
    return judged("determinism", changed > 0, changed, 0, reason)


def logits(probability_rows: int, broken_rows: int, strange_rows: int, images: int) -> Alarm:
    """Rows are logits: neither probabilities, whose differences vanish where a network is sure, nor infinite or NaN.

    Nor are they of a strange scale, over a thousand or under a thousandth from the largest to the smallest: gradients
    of a cross-entropy saturate there in float32, or vanish. The losses of this harness have no scale, but whatever
    else in the network was made with such logits may still saturate.
    """
    if not images:
        return not_run("logits", LOGITS_LIMIT, "no images")
    value = max(probability_rows, broken_rows, strange_rows) / images
    reason = (
        f"{probability_rows} of {images} rows are probabilities, {broken_rows} are not finite, "
        f"{strange_rows} are of a scale at which losses saturate or vanish"
    )
    return judged("logits", broken_rows > 0 or value > LOGITS_LIMIT, value, LOGITS_LIMIT, reason)


def gradients(cases: Sequence[tuple[str, int, int]]) -> Alarm:
    """At most 5 % of images have an all-zero or non-finite input gradient, in the worst of the `cases`.

    `cases` are (what, images, images without a usable gradient), for every loss, at the image and at a random start.
    """
    seen = [(useless / images, what, images, useless) for what, images, useless in cases if images]
    if not seen:
        return not_run("gradients", GRADIENTS_LIMIT, "no images that the engine gets right")
    value, what, images, useless = max(seen)
    reason = f"worst case is {what}: {useless} of {images} gradients are all zero or not finite"
    return judged("gradients", value > GRADIENTS_LIMIT, value, GRADIENTS_LIMIT, reason)


def eps_curve(points: Sequence[CurvePoint], images: int, largest_class: int) -> Alarm:
    """Accuracy falls with eps, and is at chance where every image can be turned into uniform grey (the last point).

    A rise counts if the exact McNemar test of two neighbours finds it (p < 1 %). At uniform grey an attacker reaches
    one image for all, so that at most the images of one class survive: more survivors than the largest class has is
    above chance, if the lower end of their exact interval says so too.
    """
    if not images or not points:
        return not_run("eps_curve", None, "no images")
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
            return judged("eps_curve", True, (point.gained - point.lost) / images, 0, reason)
    above = clopper_pearson(last.survivors, images, 2 * CONFIDENCE - 1)[0] > chance
    return judged("eps_curve", above, value, chance, f"accuracy falls with eps; {at_end}" if not above else at_end)


def feasible(outside: int, rescored_otherwise: int, images: int) -> Alarm:
    """Every adversarial image, as bytes, is inside the eps ball, and the engine says of it what was recorded."""
    if not images:
        return not_run("feasible", 0, "no adversarial images")
    reason = f"{outside} of {images} adversarial images leave the eps ball, {rescored_otherwise} score otherwise again"
    return judged("feasible", outside + rescored_otherwise > 0, outside + rescored_otherwise, 0, reason)


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
        return not_run("converged", HALF_A_POINT, "no images")
    bound, value = max(bounds)
    each = ", ".join(f"{what} {fell} of {images}" for what, fell, images in gains if images)
    reason = f"fooled in addition by {each}; the gain is at least {100 * bound:.2f} points"
    return judged("converged", bound > HALF_A_POINT, value, HALF_A_POINT, reason)
