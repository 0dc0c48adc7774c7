"""Measured chunks added up: counts with intervals, alarms, per-image records.

Boundary: a pure function of measurements; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy import alarms
from hardbit_deploy.attacks import step_size_255
from hardbit_deploy.chunk import MAX_EXAMPLES, Measurements
from hardbit_deploy.chunk_attacks import transfer_name
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
    alarms: list[alarms.Alarm]
    records: dict[str, NDArray[Any]]
    examples: dict[str, NDArray[Any]]


def collect_evidence(
    chunks: Iterable[Measurements], suite: Suite, manifest: Manifest, radii_255: tuple[float, ...]
) -> Evidence:
    """Add up the chunks of one evaluation of the bundle of `manifest`, given in the order of their images."""
    totals = _Totals()
    for measured in chunks:
        totals.add(measured)
    records = totals.records()
    curve = np.concatenate(totals.curve, axis=1)
    return Evidence(
        agreement=[_agreement_row(name, totals) for name in _AGREEMENTS if name in totals.agreement],
        attacks=_attack_rows(totals, suite, manifest),
        eps_curve=_curve_rows(curve, radii_255),
        alarms=_alarms(totals, suite, manifest, curve, radii_255),
        records={_record_name(name): value for name, value in records.items()},
        examples=totals.chosen_examples(),
    )


class _Totals:
    """Sums over chunks; arrays only where one entry per image is kept."""

    def __init__(self) -> None:
        self.per_image: dict[str, list[NDArray[Any]]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.seconds: dict[str, float] = {}
        self.agreement: dict[str, tuple[int, int, float]] = {}
        self.curve: list[NDArray[np.bool_]] = []
        self.examples: dict[str, list[NDArray[Any]]] = {}

    def add(self, measured: Measurements) -> None:
        for name, value in measured.items():
            kind, _, rest = name.partition("/")
            if kind == "seconds":
                self.seconds[rest] = self.seconds.get(rest, 0.0) + float(value)
            elif kind == "agreement":
                images, flips, largest = self.agreement.get(rest, (0, 0, 0.0))
                self.agreement[rest] = (images + int(value[0]), flips + int(value[1]), max(largest, float(value[2])))
            elif kind == "examples":
                self.examples.setdefault(rest, []).append(value)
            elif kind == "curve":
                self.curve.append(value)
            elif kind in ("logits", "determinism", "feasible", "gradients", "converged", "converged_queries"):
                self.counts[name] = self.counts.get(name, np.zeros(len(value), np.int64)) + value
            else:
                self.per_image.setdefault(name, []).append(value)

    def records(self) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate(parts) for name, parts in self.per_image.items()}

    def record(self, name: str) -> NDArray[np.bool_]:
        return np.concatenate(self.per_image[name])

    def chosen_examples(self) -> dict[str, NDArray[Any]]:
        examples = {name: np.concatenate(parts) for name, parts in self.examples.items()}
        fooled = examples["adversarial_prediction"] != examples["label"]
        order = np.argsort(~fooled, kind="stable")[:MAX_EXAMPLES]
        return {name: values[order] for name, values in examples.items()}


def _agreement_row(name: str, totals: _Totals) -> dict[str, Any]:
    images, flips, largest = totals.agreement[name]
    return {
        "name": name,
        "images": images,
        "label_flips": flips,
        "flips_upper_bound": clopper_pearson_upper(flips, images) if images else 1.0,
        "max_logit_difference": largest,
    }


def _attack_rows(totals: _Totals, suite: Suite, manifest: Manifest) -> list[dict[str, Any]]:
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
    worst = _attack_row(totals, "worst_case", "worst_case", ball)
    worst["seconds"] = sum(row["seconds"] for row in rows)
    return [*rows, worst]


def _step_logits(totals: _Totals) -> str:
    """Whose logits straight-through PGD took within a climb."""
    same_bits = totals.record("same_bits")
    if not same_bits.any():
        return "engine"
    which = "attack graph" if same_bits.all() else f"attack graph for {np.count_nonzero(same_bits)} images"
    return f"{which}, bit-equal to the engine"


def _attack_row(totals: _Totals, name: str, record: str, settings: dict[str, Any]) -> dict[str, Any]:
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


def _alarms(
    totals: _Totals, suite: Suite, manifest: Manifest, curve: NDArray[np.bool_], radii_255: tuple[float, ...]
) -> list[alarms.Alarm]:
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
        alarms.determinism(*determinism),
        alarms.logits(*bad_logits),
        alarms.gradients(cases),
        *_alarms_between_attacks(totals, suite, manifest),
        alarms.eps_curve(_curve_points(curve, radii_255), curve.shape[1], largest_class),
        alarms.feasible(*feasible),
        alarms.converged(gains),
    ]


def _alarms_between_attacks(totals: _Totals, suite: Suite, manifest: Manifest) -> list[alarms.Alarm]:
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
    by_surrogate = {
        surrogate: [suite.pgd_name(loss, surrogate) for loss in suite.losses] for surrogate in suite.surrogates
    }
    sources = {source.name: [transfer_name(source.name)] for source in manifest.transfers}
    if sources:
        sources["all"] = [name for names in sources.values() for name in names]
    return [
        alarms.iterative_beats_one_step(alone(white_box[:1], white_box[1:]), images),
        alarms.surrogates(
            {
                surrogate: alone(names, [name for name in white_box if name not in names])
                for surrogate, names in by_surrogate.items()
            },
            images,
            bits,
        ),
        alarms.white_box_beats_black_box(alone(square, white_box), images, bits, was_run=bool(square)),
        alarms.white_box_beats_transfer({source: alone(names, white_box) for source, names in sources.items()}, images),
    ]


def _curve_rows(curve: NDArray[np.bool_], radii_255: tuple[float, ...]) -> list[dict[str, Any]]:
    if not curve.shape[1]:
        return []
    return [{"eps_255": radius, **_rate(survived)} for radius, survived in zip(radii_255, curve, strict=True)]


def _curve_points(curve: NDArray[np.bool_], radii_255: tuple[float, ...]) -> list[alarms.CurvePoint]:
    points = []
    smaller = np.ones(curve.shape[1], np.bool_)
    for radius, survived in zip(radii_255, curve, strict=True):
        lost, gained = np.count_nonzero(smaller & ~survived), np.count_nonzero(survived & ~smaller)
        points.append(alarms.CurvePoint(radius, int(np.count_nonzero(survived)), int(lost), int(gained)))
        smaller = survived
    return points


def _record_name(name: str) -> str:
    return name.replace(" ", "_")
