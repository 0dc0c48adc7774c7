"""Several results on one page: latency against robustness, and whether they may be compared at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hardbit.report import wording
from hardbit.report.charts.bench_scatter import BenchPoint, bench_scatter, frontier
from hardbit.report.charts.interval_bar import interval_bar, rate_axis
from hardbit.report.charts.svg import tag
from hardbit.report.rendering import chart_styles, render
from hardbit.report.result_page import attack_rate, figure
from hardbit_deploy.known_alarms import accepted_alarms

__all__ = ["bench_picture", "comparison_page"]

PICTURE_WIDTH = 760.0
NO_ATTACKS = ("clean", "worst_case")


def comparison_page(documents: Sequence[Mapping[str, Any]]) -> str:
    """HTML that sets the results side by side, in the order given."""
    documents = _told_apart(documents)
    points = _points(documents)
    spoken = _spoken(points)
    scatter = figure("bench-scatter", lambda w, i: bench_scatter(points, spoken, w, i), wide=1032.0) if points else None
    return render(
        "comparison.html",
        documents=documents,
        scatter=scatter,
        rows=[_row(document) for document in documents],
        rate_axis=rate_axis(),
        differences=_differences(documents),
        best={point.name for point in frontier(points)},
        undrawn=[document["bundle"]["name"] for document in documents if _point(document) is None],
        perturbation=wording.perturbation(documents[0]["threat_model"]),
    )


def bench_picture(documents: Sequence[Mapping[str, Any]]) -> str:
    """An SVG file that stands alone: latency against robustness of the results that have both."""
    points = _points(_told_apart(documents))
    if not points:
        raise ValueError("no result has both a latency and a robust accuracy: nothing to draw")
    drawn = bench_scatter(points, _spoken(points), PICTURE_WIDTH, "bench-scatter")
    background = tag("rect", width="100%", height="100%", style="fill: var(--card)")
    opening, rest = str(drawn).split(">", 1)
    head = f'{opening} xmlns="http://www.w3.org/2000/svg" width="{PICTURE_WIDTH:.0f}">'
    return f"{head}<style>{chart_styles()}</style>{background}{rest}"


def _told_apart(documents: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same results; where several bundles share a name, as yesterday's and today's do, it gets a number."""
    names = [document["bundle"]["name"] for document in documents]
    told: list[Mapping[str, Any]] = []
    for position, (name, document) in enumerate(zip(names, documents, strict=True)):
        if names.count(name) > 1:
            name = f"{name} ({names[: position + 1].count(name)})"
        told.append({**document, "bundle": {**document["bundle"], "name": name}})
    return told


def _points(documents: Sequence[Mapping[str, Any]]) -> list[BenchPoint]:
    return [point for point in map(_point, documents) if point is not None]


def _point(document: Mapping[str, Any]) -> BenchPoint | None:
    robust, latency = attack_rate(document, "worst_case"), document["latency"]
    if robust is None or latency is None:
        return None
    ends = latency.get("p50_interval_ms")
    return BenchPoint(
        name=str(document["bundle"]["name"]),
        clean=attack_rate(document, "clean"),
        robust=robust,
        p50_ms=float(latency["p50_ms"]),
        p50_interval_ms=(float(ends[0]), float(ends[1])) if ends else None,
        verdict=document["verdict"]["name"],
        accepted_alarms=tuple(alarm["name"] for alarm in accepted_alarms(document)),
    )


def _spoken(points: Sequence[BenchPoint]) -> str:
    return "; ".join(
        f"{point.name}: {wording.percent(point.robust[0])} robust at {wording.milliseconds(point.p50_ms)}"
        for point in points
    )


def _row(document: Mapping[str, Any]) -> dict[str, Any]:
    robust = attack_rate(document, "worst_case")
    heading = f"{wording.percent(robust[0])}, interval {wording.interval(robust[1:])}" if robust else ""
    return {
        "document": document,
        "accepted": [alarm["name"] for alarm in accepted_alarms(document)],
        "bits": _bits(document["bundle"]["network"].get("bits")),
        "clean": attack_rate(document, "clean"),
        "robust": robust,
        "bar": Markup(interval_bar(robust, heading, strong=True)) if robust else None,
        "not_run": wording.not_run_reason(document),
    }


def _bits(bits: Mapping[str, Any] | None) -> str:
    return f"W{bits['weights']}A{bits['activations']}" if bits and {"weights", "activations"} <= set(bits) else "–"


def _differences(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whatever makes the numbers of these results no comparison of the networks alone."""
    asked: list[tuple[str, list[object]]] = [
        ("threat models", [wording.perturbation(d["threat_model"]) for d in documents]),
        ("suites of attacks", [f"{d['suite'].get('name')}, {d['suite'].get('images')} images" for d in documents]),
        ("attacks", [", ".join(a["name"] for a in d["attacks"] if a["name"] not in NO_ATTACKS) for d in documents]),
        ("machines", [d["environment"].get("cpu") or d["environment"].get("machine") or "unknown" for d in documents]),
        ("grades of the timing", [d["latency"]["grade"] for d in documents if d["latency"]]),
    ]
    found = []
    for what, values in asked:
        distinct = list(dict.fromkeys(str(value) for value in values))
        if len(distinct) > 1:
            found.append(f"different {what}: {'; '.join(distinct)}")
    return found
