"""Measured chunks added up: counts with intervals, alarms, per-image records.

Boundary: a pure function of measurements; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.alarm import Alarm
from hardbit_deploy.attack_specs import AttackSpec
from hardbit_deploy.attacks import step_size_255
from hardbit_deploy.chunk import Measurements
from hardbit_deploy.chunk_attacks import transfer_name
from hardbit_deploy.chunk_counts import CORRUPTIONS
from hardbit_deploy.chunk_totals import ChunkTotals
from hardbit_deploy.judged_alarms import judge_alarms
from hardbit_deploy.manifest import Manifest
from hardbit_deploy.statistics import clopper_pearson_upper, wilson_interval
from hardbit_deploy.suite import STRAIGHT_THROUGH, Suite

__all__ = ["Evidence", "collect_evidence"]

_AGREEMENTS = ("twin_clean", "twin_adversarial", "attack_graph_clean", "attack_graph_adversarial")


@dataclass(frozen=True)
class Evidence:
    """Parts of a result document, and arrays that lie beside it."""

    agreement: list[dict[str, Any]]
    attacks: list[dict[str, Any]]
    eps_curve: list[dict[str, Any]]
    corruptions: list[dict[str, Any]]
    alarms: list[Alarm]
    records: dict[str, NDArray[Any]]
    examples: dict[str, NDArray[Any]]


def collect_evidence(
    chunks: Iterable[Measurements],
    suite: Suite,
    manifest: Manifest,
    radii_255: tuple[float, ...],
    gradient_draws: int = 1,
) -> Evidence:
    """Add up the chunks of one evaluation of the bundle of `manifest`, given in the order of their images.

    `gradient_draws` says over how many draws of a random engine gradients were averaged.
    """
    totals = ChunkTotals()
    for measured in chunks:
        totals.add(measured)
    records = totals.records()
    curve = np.concatenate(totals.curve, axis=1)
    return Evidence(
        agreement=[_agreement_row(name, totals) for name in _AGREEMENTS if name in totals.agreement],
        attacks=_attack_rows(totals, suite, manifest),
        eps_curve=_curve_rows(curve, radii_255),
        corruptions=_corruption_rows(totals),
        alarms=judge_alarms(totals, suite, manifest, curve, radii_255, gradient_draws),
        records={_record_name(name): value for name, value in records.items()},
        examples=totals.chosen_examples(),
    )


def _agreement_row(name: str, totals: ChunkTotals) -> dict[str, Any]:
    images, flips, largest = totals.agreement[name]
    return {
        "name": name,
        "images": images,
        "label_flips": flips,
        "flips_upper_bound": clopper_pearson_upper(flips, images) if images else 1.0,
        "max_logit_difference": largest,
    }


def _attack_rows(totals: ChunkTotals, suite: Suite, manifest: Manifest) -> list[dict[str, Any]]:
    model = manifest.threat_model
    ball = model.to_document()
    one_step = {**ball, "steps": 1, "step_255": model.eps_255, "start": "image", "loss": suite.losses[0]}
    rows = [_attack_row(totals, "clean", "clean", {}), _attack_row(totals, "fgsm", "survived/fgsm", one_step)]
    for surrogate, loss in suite.climbs:
        name = suite.pgd_name(loss, surrogate)
        settings = {
            **ball,
            "steps": suite.steps,
            "step_255": step_size_255(model, suite.steps),
            "restarts": suite.restarts,
            "start": "random",
            "seed": suite.seed,
            "loss": loss,
            "surrogate": surrogate,
            "step_logits": _step_logits(totals) if surrogate == STRAIGHT_THROUGH else "engine",
        }
        rows.append(_attack_row(totals, name, f"survived/{name}", settings))
    if suite.square_name is not None:
        name = suite.square_name
        settings = {**ball, "queries": suite.square_queries, "start": "stripes", "seed": suite.seed, "loss": "margin"}
        made = int(totals.records()[f"queries/{name}"].sum())
        rows.append(_attack_row(totals, name, f"survived/{name}", settings | {"queries_made": made}))
    for source in manifest.transfers:
        name = transfer_name(source.name)
        rows.append(_attack_row(totals, name, f"survived/{name}", {**ball, "candidates": source.candidates}))
    rows += [
        {
            **_attack_row(totals, spec.name, f"survived/{spec.name}", _further_settings(spec, suite, manifest)),
            "attacked": given,
            "fell": fell,
        }
        for spec, given, fell in totals.further(suite, manifest)
    ]
    worst = _attack_row(totals, "worst_case", "worst_case", ball)
    worst["seconds"] = sum(row["seconds"] for row in rows)
    return [*rows, worst]


def _further_settings(spec: AttackSpec, suite: Suite, manifest: Manifest) -> dict[str, Any]:
    settings = {**manifest.threat_model.to_document(), **spec.settings(manifest.classes), "seed": suite.seed}
    return settings | ({"surrogates": list(suite.surrogates)} if spec.is_white_box else {})


def _step_logits(totals: ChunkTotals) -> str:
    """Whose logits straight-through PGD took within a climb."""
    same_bits = totals.record("same_bits")
    if not same_bits.any():
        return "engine"
    which = "attack graph" if same_bits.all() else f"attack graph for {np.count_nonzero(same_bits)} images"
    return f"{which}, bit-equal to the engine"


def _attack_row(totals: ChunkTotals, name: str, record: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`seconds` are those of all workers together."""
    return {
        "name": name,
        **_rate(totals.record(record)),
        "seconds": totals.seconds.get(name, 0.0),
        "settings": settings,
    }


def _rate(survived: NDArray[np.bool_]) -> dict[str, Any]:
    survivors, images = int(np.count_nonzero(survived)), len(survived)
    return {
        "images": images,
        "survivors": survivors,
        "rate": survivors / images,
        "interval": list(wilson_interval(survivors, images)),
    }


def _curve_rows(curve: NDArray[np.bool_], radii_255: tuple[float, ...]) -> list[dict[str, Any]]:
    if not curve.shape[1]:
        return []
    return [{"eps_255": radius, **_rate(survived)} for radius, survived in zip(radii_255, curve, strict=True)]


def _corruption_rows(totals: ChunkTotals) -> list[dict[str, Any]]:
    if not totals.corruptions:
        return []
    kept = np.concatenate(totals.corruptions, axis=1)
    return [
        {"kind": kind, "severity": severity, **_rate(survived)}
        for (kind, severity), survived in zip(CORRUPTIONS, kept, strict=True)
    ]


def _record_name(name: str) -> str:
    return name.replace(" ", "_")
