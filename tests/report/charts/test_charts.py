"""Charts place their marks where the numbers say."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import report_examples as examples
from hardbit.report.charts.bench_scatter import BenchPoint, bench_scatter, frontier
from hardbit.report.charts.eps_curve import EpsPoint, eps_curve
from hardbit.report.charts.gate_rule import GateDrawing, gate_rule
from hardbit.report.charts.interval_bar import dumbbell, interval_bar
from hardbit.report.charts.latency_histogram import latency_histogram

QUANTILES = [("p50", 0.22), ("p90", 0.24), ("p99", 0.28)]


def elements(markup: str, tag: str, class_: str = "") -> list[ElementTree.Element]:
    return [
        e for e in ElementTree.fromstring(markup).iter(tag) if class_ in (e.get("class") or "").split() or not class_
    ]


def words(markup: str) -> list[str]:
    return [element.text or "" for element in elements(markup, "text")]


def test_a_bar_ends_at_the_rate_and_its_whisker_at_the_interval() -> None:
    bar = interval_bar((0.669, 0.648, 0.689), "66.9 %")
    (fill,) = elements(bar, "rect")
    whisker = elements(bar, "line", "whisker")[0]
    assert fill.get("width") == "66.90%"
    assert (whisker.get("x1"), whisker.get("x2")) == ("64.80%", "68.90%")


def test_a_dumbbell_spans_what_the_attack_took() -> None:
    (link,) = elements(dumbbell((0.85, 0.83, 0.87), (0.67, 0.65, 0.69), "Shirt"), "line", "link")
    assert (link.get("x1"), link.get("x2")) == ("67.00%", "85.00%")


def test_the_eps_curve_falls_where_the_rates_fall_and_marks_threat_model_and_chance() -> None:
    points = [
        EpsPoint(0, 0.85, 0.83, 0.87, "a"),
        EpsPoint(25, 0.67, 0.65, 0.69, "b"),
        EpsPoint(128, 0.01, 0, 0.02, "c"),
    ]
    chart = eps_curve(points, 25.0, 0.1, "eps", "spoken", 500.0, "eps-curve")
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in elements(chart, "circle")]
    assert dots == sorted(dots)  # to the right and, in SVG, downwards
    assert elements(chart, "line", "target")[0].get("x1") == f"{dots[1][0]:.2f}".rstrip("0").rstrip(".")
    assert "threat model: 25" in words(chart)
    assert "chance: 10\u00a0%" in words(chart)
    rise = (dots[2][1] - dots[0][1]) / (0.85 - 0.01)
    assert (dots[1][1] - dots[0][1]) / (0.85 - 0.67) == pytest.approx(rise, abs=0.5)


def test_the_name_of_the_chance_level_keeps_out_of_the_curve() -> None:
    falling = [EpsPoint(0, 0.9, 0.9, 0.9, ""), EpsPoint(64, 0, 0, 0, ""), EpsPoint(128, 0, 0, 0, "")]
    staying = [EpsPoint(0, 0.9, 0.9, 0.9, ""), EpsPoint(100, 0.12, 0.1, 0.14, ""), EpsPoint(128, 0.12, 0.1, 0.14, "")]
    places = []
    for points in (falling, staying):
        chart = eps_curve(points, 8.0, 0.1, "eps", "spoken", 500.0, "c")
        places += [float(e.get("x")) for e in elements(chart, "text") if (e.text or "").startswith("chance")]
    assert places[0] > 250 > places[1]


def test_an_eps_curve_without_chance_level_draws_none() -> None:
    chart = eps_curve([EpsPoint(8, 0.5, 0.4, 0.6, "")], None, None, "eps", "spoken", 330.0, "c")
    assert not elements(chart, "line", "chance")
    assert not elements(chart, "line", "target")


def test_the_histogram_counts_every_query() -> None:
    times = examples.query_times()
    chart = latency_histogram(times, QUANTILES, "spoken", 660.0, "h")
    counted = [re.search(r": ([\d,]+) queries", title.text or "") for title in elements(chart, "title")]
    in_bars = sum(int(found[1].replace(",", "")) for found in counted if found)
    (slower,) = [re.match(r"([\d,]+) slower", text) for text in words(chart) if "slower" in text]
    assert slower
    assert in_bars + int(slower[1].replace(",", "")) == times.size


def test_the_histogram_marks_its_quantiles_in_order_and_shows_every_process() -> None:
    chart = latency_histogram(examples.query_times(), QUANTILES, "spoken", 330.0, "h")
    marks = [float(mark.get("x1")) for mark in elements(chart, "line", "target")]
    assert marks == sorted(marks)
    assert [text for text in words(chart) if text.startswith("p")] == ["p50 0.220 ms", "p90 0.240 ms", "p99 0.280 ms"]
    assert len(elements(chart, "line", "middle-half")) == 5


@pytest.mark.parametrize(
    "times",
    [np.full((1, 1), 0.2), np.full((3, 50), 0.2), np.array([[0.1, np.nan], [0.2, 0.3]])],
    ids=["one", "equal", "ragged"],
)
def test_degenerate_timings_are_drawn_all_the_same(times: np.ndarray) -> None:
    chart = latency_histogram(times, [("p50", 0.2), ("p90", 0.2), ("p99", 0.2)], "spoken", 330.0, "h")
    assert "nan" not in chart
    assert elements(chart, "rect", "fill")


@given(
    estimate=st.floats(0, 1),
    spread=st.floats(0, 0.2),
    reference=st.floats(0.02, 1),
    margin=st.floats(0.001, 0.019),
    higher=st.booleans(),
    width=st.sampled_from([330.0, 520.0]),
)
@settings(max_examples=200, deadline=None)
def test_a_rule_keeps_its_marks_inside_and_its_shade_on_the_good_side(
    estimate: float, spread: float, reference: float, margin: float, higher: bool, width: float
) -> None:
    line = reference - margin if higher else reference + margin
    bound, opposite = (estimate - spread, estimate + spread) if higher else (estimate + spread, estimate - spread)
    chart = gate_rule(GateDrawing(estimate, bound, opposite, line, reference, higher), "{:.3f}".format, "", width, "g")
    (shade,) = elements(chart, "rect", "good-side")
    (dot,) = elements(chart, "circle")
    left, right = float(shade.get("x")), float(shade.get("x")) + float(shade.get("width"))
    at = float(dot.get("cx"))
    assert 0 <= at <= width
    if abs(estimate - line) > 0.01:
        assert (left <= at <= right) == ((estimate > line) == higher)
    assert f"must {'exceed' if higher else 'not exceed'} {line:.3f}" in words(chart)


def point(name: str, p50_ms: float, robust: float, verdict: str = "PASS") -> BenchPoint:
    return BenchPoint(name, (0.85, 0.83, 0.87), (robust, robust - 0.02, robust + 0.02), p50_ms, None, verdict)


def test_the_frontier_holds_what_no_other_beats_in_both() -> None:
    points = [point("slow", 2.0, 0.70), point("beaten", 2.5, 0.69), point("fast", 0.2, 0.60), point("same", 0.2, 0.59)]
    assert [p.name for p in frontier(points)] == ["fast", "slow"]


def test_a_result_that_did_not_pass_beats_nothing() -> None:
    points = [point("doubtful", 0.1, 0.99, "INCONCLUSIVE"), point("sound", 0.2, 0.6)]
    assert [p.name for p in frontier(points)] == ["sound"]
    masked = replace(point("masked", 0.1, 0.99), accepted_alarms=("converged",))
    assert [p.name for p in frontier([masked, points[1]])] == ["sound"]
    assert "PASS, accepted converged" in str(bench_scatter([masked, points[1]], "spoken", 760.0, "s"))


@pytest.mark.parametrize("slowest", [0.4, 40.0], ids=["linear", "logarithmic"])
def test_the_scatter_places_fast_left_and_robust_high(slowest: float) -> None:
    chart = bench_scatter([point("a", 0.2, 0.5), point("b", slowest, 0.7)], "spoken", 760.0, "s")
    (xa, ya), (xb, yb) = [(float(d.get("cx")), float(d.get("cy"))) for d in elements(chart, "circle", "dot")]
    assert xa < xb
    assert ya > yb
    assert ("logarithmic" in " ".join(words(chart))) == (slowest == 40.0)


def test_names_of_near_points_do_not_meet() -> None:
    chart = bench_scatter([point(f"network-{i}", 0.2 + i / 1000, 0.6) for i in range(5)], "spoken", 760.0, "s")
    lines = sorted(float(text.get("y")) for text in elements(chart, "text", "halo"))
    assert all(after - before >= 14 for before, after in pairwise(lines))
