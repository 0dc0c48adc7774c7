"""One rule of a gate: what was promised, the line that the deciding bound must clear, and what was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from hardbit.report.charts.scale import LinearScale
from hardbit.report.charts.svg import drawing, tag, text, text_width, title

__all__ = ["GateDrawing", "gate_rule"]

HEIGHT = 74.0
MIDDLE = 37.0
ABOVE, BELOW = 14.0, 68.0  # baselines of the two rows of labels
EDGE = 8.0

Words = Callable[[float], str]


@dataclass(frozen=True)
class GateDrawing:
    """An estimate with its one-sided bounds, and the `line` between good and bad.

    `bound` must clear the line for a pass, `opposite_bound` must miss it for a fail. `reference` is what was promised,
    None where that is the line itself. `higher_is_better` says which side is good.
    """

    estimate: float
    bound: float
    opposite_bound: float
    line: float
    reference: float | None
    higher_is_better: bool

    @property
    def low(self) -> float:
        return min(self.bound, self.opposite_bound)

    @property
    def high(self) -> float:
        return max(self.bound, self.opposite_bound)


def gate_rule(rule: GateDrawing, words: Words, description: str, width: float, identifier: str) -> Markup:
    """Draw the rule on a scale of its own that shows the difference that matters; `words` writes a value."""
    marks = [rule.estimate, rule.low, rule.high, rule.line] + ([rule.reference] if rule.reference is not None else [])
    lowest, highest = min(marks), max(marks)
    pad = (highest - lowest or abs(highest) * 0.05 or 1.0) * (0.9 if width < 420 else 0.45)
    x = LinearScale(lowest - pad, highest + pad, EDGE, width - EDGE)
    left, right = (x(rule.line), x.end) if rule.higher_is_better else (x.start, x(rule.line))
    seen = tag("circle", title(f"seen: {words(rule.estimate)}"), cx=x(rule.estimate), cy=MIDDLE, r=5.5, class_="dot")
    return drawing(
        width,
        HEIGHT,
        identifier,
        "Gate rule",
        description,
        tag("rect", x=left, y=MIDDLE - 11, width=right - left, height=22, class_="good-side"),
        tag("line", x1=x.start, x2=x.end, y1=MIDDLE, y2=MIDDLE, class_="axis"),
        *_line_and_reference(rule, x, words),
        tag("line", x1=x(rule.low), x2=x(rule.high), y1=MIDDLE, y2=MIDDLE, class_="whisker thick"),
        *(_tick(x(end)) for end in (rule.low, rule.high)),
        seen,
        *_bounds(rule, x, words),
    )


def _line_and_reference(rule: GateDrawing, x: LinearScale, words: Words) -> list[Markup]:
    """Labels above the scale, one on either side, so that they never meet."""
    limit = f"must {'exceed' if rule.higher_is_better else 'not exceed'} {words(rule.line)}"
    parts = [tag("line", x1=x(rule.line), x2=x(rule.line), y1=MIDDLE - 16, y2=MIDDLE + 14, class_="target")]
    if rule.reference is None or rule.reference == rule.line:
        return [*parts, _single(x(rule.line), ABOVE, limit, x)]
    at = x(rule.reference)
    parts.append(tag("line", x1=at, x2=at, y1=MIDDLE - 16, y2=MIDDLE + 14, class_="reference"))
    promised = f"promised {words(rule.reference)}"
    if rule.line < rule.reference:
        return [*parts, *_pair((limit, "note"), x(rule.line), (promised, "tick"), at, ABOVE, x)]
    return [*parts, *_pair((promised, "tick"), at, (limit, "note"), x(rule.line), ABOVE, x)]


def _bounds(rule: GateDrawing, x: LinearScale, words: Words) -> list[Markup]:
    """The bound that decides a pass in bold."""
    if rule.low == rule.high:
        return [_single(x(rule.estimate), BELOW, words(rule.estimate), x)]
    bound, opposite = (f"bound {words(rule.bound)}", "note strong"), (words(rule.opposite_bound), "note")
    left, right = (bound, opposite) if rule.bound < rule.opposite_bound else (opposite, bound)
    return _pair(left, x(rule.low), right, x(rule.high), BELOW, x)


def _tick(at: float) -> Markup:
    return tag("line", x1=at, x2=at, y1=MIDDLE - 7, y2=MIDDLE + 7, class_="whisker thick")


def _pair(
    left: tuple[str, str], left_at: float, right: tuple[str, str], right_at: float, y: float, x: LinearScale
) -> list[Markup]:
    """Two labels, (words, class) each, that grow away from each other, pushed inwards where the drawing ends."""
    left_end = max(left_at + 4, x.start + text_width(left[0]))
    right_start = min(right_at - 4, x.end - text_width(right[0]))
    if right_start < left_end + 10:
        middle = (left_end + right_start) / 2
        left_end, right_start = middle - 5, middle + 5
    return [text(left_end, y, left[0], class_=left[1], anchor="end"), text(right_start, y, right[0], class_=right[1])]


def _single(at: float, y: float, content: str, x: LinearScale) -> Markup:
    half = text_width(content) / 2
    return text(min(max(at, x.start + half), x.end - half), y, content, class_="note", anchor="middle")
