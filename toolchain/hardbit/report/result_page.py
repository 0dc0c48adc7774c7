"""The page of one result: its document and arrays turned into what the template shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from hardbit.report import wording
from hardbit.report.charts.eps_curve import EpsPoint, eps_curve
from hardbit.report.charts.gate_rule import GateDrawing, gate_rule
from hardbit.report.charts.interval_bar import dumbbell, interval_bar, rate_axis
from hardbit.report.charts.latency_histogram import latency_histogram
from hardbit.report.evidence import Examples, Missing, Records, read_examples, read_query_times, read_records
from hardbit.report.pictures import amplification, image_uri, perturbation_uri
from hardbit.report.rendering import render
from hardbit_deploy.network_bits import gain_of_few_bits
from hardbit_deploy.statistics import wilson_interval

__all__ = ["Figure", "attack_rate", "figure", "result_page"]

MOST_EXAMPLES = 12
WIDE, NARROW = 520.0, 330.0  # px; the style sheet shows one drawing or the other


@dataclass(frozen=True)
class Figure:
    """One chart drawn twice: text keeps its size on a phone instead of shrinking with the picture."""

    wide: Markup
    narrow: Markup


def figure(identifier: str, draw: Callable[[float, str], Markup], wide: float = WIDE) -> Figure:
    return Figure(draw(wide, identifier), draw(NARROW, f"{identifier}-narrow"))


def result_page(document: Mapping[str, Any], artifacts_dir: Path | None) -> str:
    """HTML of one result; parts that are missing say why in their place."""
    verdict = document["verdict"]
    return render(
        "result.html",
        document=document,
        verdict=verdict,
        headline=wording.headline(document),
        created=_minute(document["created"]),
        next_steps=wording.next_steps(document),
        perturbation=wording.perturbation(document["threat_model"]),
        not_run=wording.not_run_reason(document),
        key_figures=_key_figures(document),
        white_box=not any(a["name"] == "parity" and a["status"] == "alarm" for a in document["alarms"]),
        rate_axis=rate_axis(),
        attacks=_attacks(document),
        eps=_eps(document),
        corruptions=_corruptions(document),
        classes=_classes(document, read_records(document, artifacts_dir)),
        examples=_examples(document, read_examples(document, artifacts_dir)),
        latency=_latency(document, artifacts_dir),
        gain=gain_of_few_bits(document["bundle"]["target"], document["bundle"]["network"].get("bits")),
        rules=[_rule(rule, index) for index, rule in enumerate(document["gate"])],
    )


def attack_rate(document: Mapping[str, Any], name: str) -> tuple[float, float, float] | None:
    """Estimate and interval of one attack of the document; None where it did not run."""
    for attack in document["attacks"]:
        if attack["name"] == name and attack.get("rate") is not None:
            return attack["rate"], attack["interval"][0], attack["interval"][1]
    return None


def _minute(moment: str) -> str:
    """`2025-03-14T09:26:53+00:00` as `2025-03-14 09:26 UTC`; other offsets stay as they are written."""
    offset = moment[19:].lstrip("0123456789.")
    return f"{moment[:16].replace('T', ' ')} {'UTC' if offset in ('Z', '+00:00') else offset}".strip()


def _key_figures(document: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = []
    for name, label in (("clean", "clean accuracy"), ("worst_case", "robust accuracy")):
        rate = attack_rate(document, name)
        tile = {"label": label, "value": wording.percent(rate[0]) if rate else wording.MISSING}
        ends = wording.interval(rate[1:]) if rate else ""
        tiles.append({**tile, "detail": "95 % interval" if rate else "not run", "ends": ends})
    latency = document["latency"]
    value = wording.milliseconds(latency["p50_ms"]) if latency else wording.MISSING
    detail = f"p99 {wording.milliseconds(latency['p99_ms'])}, grade {latency['grade']}" if latency else "not run"
    tiles.append({"label": "median query", "value": value, "detail": detail, "ends": ""})
    precision = document["precision"]
    value = wording.precision_in_words(precision, "") if precision["nodes"] else wording.MISSING
    detail = "declared nodes, as executed" if precision["nodes"] else "not run"
    if precision["status"] == "float":
        detail = "the network is declared float"
    tiles.append({"label": "integer kernels", "value": value, "detail": detail, "ends": ""})
    return tiles


def _attacks(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for attack in document["attacks"]:
        rate = attack_rate(document, attack["name"])
        heading = f"{wording.percent(rate[0])}, interval {wording.interval(rate[1:])}" if rate else ""
        is_result = attack["name"] == "worst_case"
        rows.append(
            {
                "settings": {},
                "seconds": None,
                **attack,
                "given": _given(attack),
                "bar": interval_bar(rate, heading, strong=is_result) if rate else None,
                "result": is_result,
                "not_run": None if rate else wording.not_run_reason(document, attack.get("reason")),
            }
        )
    return rows


def _given(attack: Mapping[str, Any]) -> str:
    """`12 of the 240 images given fell`, of an attack that was made only on what others had left standing."""
    if attack.get("attacked") is None:
        return ""
    return f"{wording.count(attack['fell'])} of the {wording.count(attack['attacked'])} images given fell"


def _corruptions(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy by kind and severity: a row a kind."""
    measured = document.get("corruptions") or []
    kinds = list(dict.fromkeys(entry["kind"] for entry in measured))
    if not kinds:
        return None
    rows = [{"kind": kind, "rates": [entry["rate"] for entry in measured if entry["kind"] == kind]} for kind in kinds]
    severities = [entry["severity"] for entry in measured if entry["kind"] == kinds[0]]
    return {"rows": rows, "severities": severities, "images": measured[0]["images"]}


def _eps(document: Mapping[str, Any]) -> dict[str, Any] | None:
    measured = sorted((p for p in document["eps_curve"] if p.get("rate") is not None), key=lambda p: p["eps_255"])
    if not measured:
        return None
    clean = attack_rate(document, "clean")
    points = [_eps_point(f"eps {p['eps_255']:g}", p["eps_255"], (p["rate"], *p["interval"])) for p in measured]
    if clean and points[0].eps_255 > 0:
        points.insert(0, _eps_point("clean", 0.0, clean))
    classes = document["bundle"]["network"].get("classes")
    unit = "eps in grey levels of 255" + {"linf": ", L∞", "l2": ", L2"}.get(document["threat_model"]["norm"], "")
    spoken = "; ".join(point.caption for point in points)
    threat_eps = float(document["threat_model"]["eps_255"])

    def draw(width: float, identifier: str) -> Markup:
        return eps_curve(points, threat_eps, 1 / classes if classes else None, unit, spoken, width, identifier)

    return {"figure": figure("eps-curve", draw), "points": measured}


def _eps_point(name: str, eps_255: float, rate: tuple[float, float, float]) -> EpsPoint:
    return EpsPoint(float(eps_255), *rate, f"{name}: {wording.percent(rate[0])}")


def _classes(document: Mapping[str, Any], records: Records | Missing) -> dict[str, Any]:
    """Accuracy class by class: an average hides the class that an attacker would pick."""
    if isinstance(records, Missing):
        return {"missing": _why_missing(document, records), "rows": []}
    rows = []
    for label in np.unique(records.label):
        chosen = records.label == label
        total = int(chosen.sum())
        clean, robust = (_rate(int(outcome[chosen].sum()), total) for outcome in (records.clean, records.worst_case))
        heading = f"clean {wording.percent(clean[0])}, under attack {wording.percent(robust[0])}"
        rows.append(
            {
                "name": _class_name(document, int(label)),
                "images": total,
                "clean": clean[0],
                "robust": robust[0],
                "bar": dumbbell(clean, robust, heading),
            }
        )
    return {"missing": None, "rows": sorted(rows, key=lambda row: row["robust"])}


def _rate(survivors: int, images: int) -> tuple[float, float, float]:
    return survivors / images, *wilson_interval(survivors, images)


def _examples(document: Mapping[str, Any], examples: Examples | Missing) -> dict[str, Any]:
    if isinstance(examples, Missing):
        return {"missing": _why_missing(document, examples), "cards": []}
    shown = slice(0, MOST_EXAMPLES)
    times = amplification(examples.clean[shown], examples.adversarial[shown])
    cards = []
    for index in range(min(len(examples.label), MOST_EXAMPLES)):
        clean, adversarial = examples.clean[index], examples.adversarial[index]
        label, before, after = (
            int(values[index])
            for values in (examples.label, examples.clean_prediction, examples.adversarial_prediction)
        )
        cards.append(
            {
                "clean": image_uri(clean),
                "perturbation": perturbation_uri(clean, adversarial, times),
                "adversarial": image_uri(adversarial),
                "label": _class_name(document, label),
                "before": _class_name(document, before),
                "after": _class_name(document, after),
                "outcome": "survived" if after == label else "fooled" if before == label else "wrong before",
                "attack": wording.attack_label(str(examples.attack[index])),
                "largest": int(np.abs(adversarial.astype(np.int16) - clean).max()),
            }
        )
    return {"missing": None, "cards": cards, "times": times, "colour": examples.clean.shape[1] == 3}


def _why_missing(document: Mapping[str, Any], missing: Missing) -> str:
    if any(attack.get("rate") is not None for attack in document["attacks"]):
        return f"not shown: {missing.reason}"
    return f"not run: {wording.not_run_reason(document)}"


def _class_name(document: Mapping[str, Any], label: int) -> str:
    names = document["bundle"]["network"].get("class_names") or []
    return str(names[label]) if 0 <= label < len(names) else f"class {label}"


def _latency(document: Mapping[str, Any], artifacts_dir: Path | None) -> dict[str, Any]:
    latency = document["latency"]
    if latency is None:
        return {"missing": f"not run: {wording.not_run_reason(document)}", "figure": None}
    times = read_query_times(document, artifacts_dir)
    if isinstance(times, Missing):
        return {"missing": f"no histogram: {times.reason}", "figure": None}
    quantiles = [(name, float(latency[f"{name}_ms"])) for name in ("p50", "p90", "p99")]
    spoken = ", ".join(f"{name} {wording.milliseconds(ms)}" for name, ms in quantiles)
    spoken = f"Histogram of {wording.count(latency['queries'])} queries: {spoken}."
    drawn = figure("latency-histogram", lambda w, i: latency_histogram(times, quantiles, spoken, w, i), wide=660.0)
    return {"missing": None, "figure": drawn}


def _rule(rule: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {**rule, "label": str(rule["name"]).replace("_", " "), "figure": _rule_figure(rule, f"gate-rule-{index}")}


def _rule_figure(rule: Mapping[str, Any], identifier: str) -> Figure | None:
    """Rules that were measured are drawn: rates and differences of rates, and times, where less is better."""
    estimate, reference = _finite(rule.get("estimate")), _finite(rule.get("reference"))
    if estimate is None or reference is None:
        return None
    bounds = [_finite(rule.get(key)) for key in ("bound", "opposite_bound")]
    bound, opposite = (estimate if end is None else end for end in bounds)
    margin = _finite(rule.get("margin"))
    time = str(rule["name"]).startswith("latency")
    line = reference - (margin or 0.0)
    drawing = GateDrawing(estimate, bound, opposite, line, reference if margin else None, higher_is_better=not time)
    words = wording.milliseconds if time else wording.points if reference == 0 else wording.percent
    return figure(identifier, lambda w, i: gate_rule(drawing, words, str(rule["reason"]), w, i))


def _finite(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if usable else None
