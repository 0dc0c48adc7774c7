"""One rule of a gate: what was promised, the line that the bound must clear, and where estimate and bound lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from hardbit.report.charts.scale import LinearScale
from hardbit.report.charts.svg import drawing, tag, text, text_width

__all__ = ["GateDrawing", "gate_rule"]

HEIGHT = 74.0
MIDDLE = 37.0
EDGE = 8.0


@dataclass(frozen=True)
class GateDrawing:
    """`higher_is_better` says on which side of `line` the bound must lie; `reference` is None where it is the line."""

    estimate: float
    bound: float
    line: float
    reference: float | None
    higher_is_better: bool


def gate_rule(
    rule: GateDrawing, written: Callable[[float], str], description: str, width: float, identifier: str
) -> Markup:
    """Draw the rule on a scale of its own that shows the difference that matters; `written` words a value."""
    marks = [rule.estimate, rule.bound, rule.line] + ([rule.reference] if rule.reference is not None else [])
    low, high = min(marks), max(marks)
    spread = high - low or abs(high) * 0.05 or 1.0
    pad = spread * (0.9 if width < 420 else 0.45)
    x = LinearScale(low - pad, high + pad, EDGE, width - EDGE)
    good = (x(rule.line), x.end) if rule.higher_is_better else (x.start, x(rule.line))
    parts = [
        tag("rect", x=good[0], y=MIDDLE - 11, width=good[1] - good[0], height=22, class_="good-side"),
        tag("line", x1=x.start, x2=x.end, y1=MIDDLE, y2=MIDDLE, class_="axis"),
        *_line_and_reference(rule, x, written),
        tag("line", x1=x(rule.bound), x2=x(rule.estimate), y1=MIDDLE, y2=MIDDLE, class_="whisker thick"),
        tag("line", x1=x(rule.bound), x2=x(rule.bound), y1=MIDDLE - 8, y2=MIDDLE + 8, class_="whisker thick"),
        tag("circle", cx=x(rule.estimate), cy=MIDDLE, r=5.5, class_="dot"),
        *_estimate_and_bound(rule, x, written),
    ]
    return drawing(width, HEIGHT, identifier, "Gate rule", description, *parts)


def _line_and_reference(rule: GateDrawing, x: LinearScale, written: Callable[[float], str]) -> list[Markup]:
    """Labels above the scale, one on either side, so that they never meet."""
    parts = [tag("line", x1=x(rule.line), x2=x(rule.line), y1=MIDDLE - 16, y2=MIDDLE + 14, class_="target")]
    line_label = f"must {'exceed' if rule.higher_is_better else 'stay below'} {written(rule.line)}"
    if rule.reference is None or rule.reference == rule.line:
        return [*parts, _label(x(rule.line), 14, line_label, x, "middle")]
    first, second = (line_label, rule.line), (f"promised {written(rule.reference)}", rule.reference)
    (left, left_at), (right, right_at) = (first, second) if rule.line < rule.reference else (second, first)
    at = x(rule.reference)
    parts.append(tag("line", x1=at, x2=at, y1=MIDDLE - 16, y2=MIDDLE + 14, class_="reference"))
    return [*parts, *_pair(left, x(left_at), right, x(right_at), 14, x)]


def _estimate_and_bound(rule: GateDrawing, x: LinearScale, written: Callable[[float], str]) -> list[Markup]:
    if rule.bound == rule.estimate:
        return [_label(x(rule.estimate), 68, f"seen {written(rule.estimate)}", x, "middle")]
    bound, seen = f"bound {written(rule.bound)}", f"seen {written(rule.estimate)}"
    if rule.bound < rule.estimate:
        return _pair(bound, x(rule.bound), seen, x(rule.estimate), 68, x)
    return _pair(seen, x(rule.estimate), bound, x(rule.bound), 68, x)


def _pair(left: str, left_at: float, right: str, right_at: float, y: float, x: LinearScale) -> list[Markup]:
    """Two labels that grow away from each other, pushed inwards where the drawing ends, but never into each other."""
    left_end = max(left_at + 4, x.start + text_width(left))
    right_start = min(right_at - 4, x.end - text_width(right))
    if right_start < left_end + 10:
        middle = (left_end + right_start) / 2
        left_end, right_start = middle - 5, middle + 5
    return [text(left_end, y, left, class_="note", anchor="end"), text(right_start, y, right, class_="note")]


def _label(at: float, y: float, content: str, x: LinearScale, anchor: str) -> Markup:
    half = text_width(content) / 2
    return text(min(max(at, x.start + half), x.end - half), y, content, class_="note", anchor=anchor)
