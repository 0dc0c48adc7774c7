"""From added-up counts to alarms: which numbers each check is given.

Boundary: chooses counts; the rules are in `alarms`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy import alarms, attack_alarms
from hardbit_deploy.alarm import Alarm
from hardbit_deploy.chunk_attacks import transfer_name
from hardbit_deploy.chunk_totals import ChunkTotals
from hardbit_deploy.manifest import Manifest
from hardbit_deploy.suite import Suite

__all__ = ["judge_alarms"]


def judge_alarms(
    totals: ChunkTotals,
    suite: Suite,
    manifest: Manifest,
    curve: NDArray[np.bool_],
    radii_255: tuple[float, ...],
    gradient_draws: int,
) -> list[Alarm]:
    """Every alarm, in the order of a result; `curve` bool (radii, images) is of survivors at `radii_255`."""

    def counted(name: str) -> tuple[int, ...]:
        return tuple(int(count) for count in totals.counts[name])

    cases = [
        (name.partition("/")[2], int(count[0]), int(count[1]))
        for name, count in totals.counts.items()
        if name.startswith("gradients/")
    ]
    agreements = [(name, count, flips) for name, (count, flips, _) in totals.agreement.items()]
    labels = np.concatenate(totals.per_image["label"])[: curve.shape[1]]
    largest_class = int(np.bincount(labels).max()) if len(labels) else 0
    bad_logits, determinism, feasible = (counted(name) for name in ("logits", "determinism", "feasible"))
    more_steps, more_starts, converged_images = counted("converged")
    more_queries, queried_images = counted("converged_queries")
    gains = [
        ("twice the steps", more_steps, converged_images),
        ("another restart", more_starts, converged_images),
        ("twice the queries", more_queries, queried_images),
    ]
    return [
        alarms.parity(agreements),
        alarms.determinism(*determinism, gradient_draws=gradient_draws),
        alarms.logits(*bad_logits),
        alarms.gradients(cases),
        *_alarms_between_attacks(totals, suite, manifest),
        attack_alarms.noise_does_not_win(*counted("noise")),
        _losses(totals, suite),
        alarms.eps_curve(_curve_points(curve, radii_255), curve.shape[1], largest_class),
        alarms.feasible(*feasible),
        alarms.converged(gains),
        attack_alarms.stronger_attacks(
            {spec: fell for spec, _, fell in totals.further(suite, manifest) if spec.is_white_box},
            len(totals.record("clean")),
        ),
    ]


def _alarms_between_attacks(totals: ChunkTotals, suite: Suite, manifest: Manifest) -> list[Alarm]:
    """What one kind of attack finds and another does not."""
    images, bits = len(totals.record("clean")), manifest.bits

    def survives(names: Iterable[str]) -> NDArray[np.bool_]:
        found = [totals.record("clean"), *(totals.record(f"survived/{name}") for name in names)]
        return np.asarray(np.all(found, axis=0))

    def alone(finders: Iterable[str], others: Iterable[str]) -> int:
        """Images that fall to one of `finders` and to none of `others`."""
        return int(np.count_nonzero(survives(others) & ~survives(finders)))

    white_box = suite.white_box_names
    square = [suite.square_name] if suite.square_name is not None else []
    further = {spec: fell for spec, _, fell in totals.further(suite, manifest)}
    by_surrogate = {
        surrogate: [suite.pgd_name(loss, surrogate) for loss in suite.losses] for surrogate in suite.surrogates
    }
    sources = {source.name: [transfer_name(source.name)] for source in manifest.transfers}
    if sources:
        sources["all"] = [name for names in sources.values() for name in names]
    return [
        attack_alarms.iterative_beats_one_step(alone(white_box[:1], white_box[1:]), images),
        attack_alarms.surrogates(
            {
                surrogate: alone(names, [name for name in white_box if name not in names])
                for surrogate, names in by_surrogate.items()
            },
            images,
            bits,
        ),
        attack_alarms.white_box_beats_black_box(
            alone(square, white_box),
            images,
            bits,
            was_run=bool(square),
            further={spec.name: fell for spec, fell in further.items() if not spec.is_white_box},
        ),
        attack_alarms.white_box_beats_transfer(
            {source: alone(names, white_box) for source, names in sources.items()}, images
        ),
    ]


def _losses(totals: ChunkTotals, suite: Suite) -> Alarm:
    left_out = [
        (name.partition("/")[2], int(count[0]), int(count[1]))
        for name, count in totals.counts.items()
        if name.startswith("losses/")
    ]
    survived = {
        loss: np.all([totals.record(f"survived/{suite.pgd_name(loss, one)}") for one in suite.surrogates], axis=0)
        for loss in suite.losses
    }
    images = len(totals.record("clean"))
    rates = {loss: int(np.count_nonzero(kept)) for loss, kept in survived.items()}
    return attack_alarms.losses(rates, images, left_out)


def _curve_points(curve: NDArray[np.bool_], radii_255: tuple[float, ...]) -> list[alarms.CurvePoint]:
    points = []
    smaller = np.ones(curve.shape[1], np.bool_)
    for radius, survived in zip(radii_255, curve, strict=True):
        lost, gained = np.count_nonzero(smaller & ~survived), np.count_nonzero(survived & ~smaller)
        points.append(alarms.CurvePoint(radius, int(np.count_nonzero(survived)), int(lost), int(gained)))
        smaller = survived
    return points
