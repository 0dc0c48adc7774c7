"""Accuracy under attack against the size of the perturbation, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hardbit.report.charts.scale import LinearScale, linear_ticks
from hardbit.report.charts.svg import drawing, tag, text, text_width, title

__all__ = ["EpsPoint", "eps_curve"]

HEIGHT = 300.0
TOP, RIGHT, BOTTOM, LEFT = 26.0, 14.0, 48.0, 44.0


@dataclass(frozen=True)
class EpsPoint:
    """Share of images that survive at `eps_255`, with its interval."""

    eps_255: float
    rate: float
    low: float
    high: float
    caption: str  # shown on hover


def eps_curve(
    points: Sequence[EpsPoint],
    threat_eps_255: float | None,
    chance: float | None,
    unit: str,
    description: str,
    width: float,
    identifier: str,
) -> Markup:
    """Draw `points` in ascending eps; a line marks the eps of the threat model and another one the level of chance."""
    furthest = max([point.eps_255 for point in points] + [threat_eps_255 or 0.0, 1e-9])
    x = LinearScale(0.0, furthest, LEFT, width - RIGHT)
    y = LinearScale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    return drawing(
        width,
        HEIGHT,
        identifier,
        "Accuracy against the size of the perturbation",
        description,
        *_axes(x, y, unit, width),
        *(_threat_line(threat_eps_255, x, y) if threat_eps_255 is not None else ()),
        *(_chance_line(chance, points, threat_eps_255, x, y) if chance is not None else ()),
        *_curve(points, x, y),
    )


def _axes(x: LinearScale, y: LinearScale, unit: str, width: float) -> list[Markup]:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            tag("line", x1=x.start, x2=x.end, y1=y(share), y2=y(share), class_="axis" if share == 0 else "grid")
        )
        parts.append(
            text(
                LEFT - 8,
                y(share) + 4,
                f"{share:.0%}".replace("%", "\u00a0%") if share == 1 else f"{100 * share:.0f}",
                anchor="end",
            )
        )
    for value in linear_ticks(0.0, x.high, 5 if width < 420 else 7):
        parts.append(tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(text(x(value), y.start + 18, f"{value:g}", anchor="middle"))
    parts.append(text((x.start + x.end) / 2, HEIGHT - 8, unit, class_="caption", anchor="middle"))
    return parts


def _threat_line(eps_255: float, x: LinearScale, y: LinearScale) -> tuple[Markup, ...]:
    label = f"threat model: {eps_255:g}"
    anchor = "start" if x(eps_255) + text_width(label) < x.end else "end"
    line = tag("line", x1=x(eps_255), x2=x(eps_255), y1=TOP - 4, y2=y.start, class_="target")
    return line, text(x(eps_255), TOP - 10, label, class_="note", anchor=anchor)


def _chance_line(
    chance: float, points: Sequence[EpsPoint], threat_eps_255: float | None, x: LinearScale, y: LinearScale
) -> tuple[Markup, ...]:
    """The level of guessing, with its name at the end of the line that the curve and the threat model leave free."""
    label = f"chance: {100 * chance:.0f}\u00a0%"
    length, baseline = text_width(label), y(chance) - 5
    left = x.end - length
    if _curve_meets(points, left, x.end, baseline - 14, baseline + 4, x, y):
        left = x.start + 6
        if threat_eps_255 is not None and left - 6 < x(threat_eps_255) < left + length:
            left = x(threat_eps_255) + 6
    line = tag("line", x1=x.start, x2=x.end, y1=y(chance), y2=y(chance), class_="chance")
    return line, text(left, baseline, label, class_="note")


def _curve_meets(
    points: Sequence[EpsPoint], left: float, right: float, top: float, bottom: float, x: LinearScale, y: LinearScale
) -> bool:
    """Whether the curve runs through a box of the drawing, looked at in steps of a few px."""
    at = np.arange(left, right + 4, 4.0)
    heights = np.interp(at, [x(point.eps_255) for point in points], [y(point.rate) for point in points])
    return bool(np.any((heights > top) & (heights < bottom)))


def _curve(points: Sequence[EpsPoint], x: LinearScale, y: LinearScale) -> list[Markup]:
    if not points:
        return []
    upper = [f"{x(point.eps_255):.2f},{y.clamped(point.high):.2f}" for point in points]
    lower = [f"{x(point.eps_255):.2f},{y.clamped(point.low):.2f}" for point in reversed(points)]
    line = " ".join(f"{x(point.eps_255):.2f},{y(point.rate):.2f}" for point in points)
    parts = [tag("polygon", points=" ".join(upper + lower), class_="band"), tag("polyline", points=line, class_="line")]
    for point in points:
        at = x(point.eps_255)
        whisker = tag("line", x1=at, x2=at, y1=y.clamped(point.low), y2=y.clamped(point.high), class_="whisker")
        parts.append(tag("g", whisker, tag("circle", cx=at, cy=y(point.rate), r=4, class_="dot"), title(point.caption)))
    return parts
