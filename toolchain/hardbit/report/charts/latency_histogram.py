"""Where single queries spend their time: a histogram with the quantiles marked, and one strip a process below it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from hardbit.report.charts.scale import LinearScale, linear_ticks
from hardbit.report.charts.svg import drawing, tag, text, text_width, title

__all__ = ["latency_histogram"]

TOP, RIGHT, LEFT = 66.0, 16.0, 16.0
PLOT_HEIGHT = 170.0
AXIS_HEIGHT = 44.0
STRIP_HEIGHT = 15.0
BEYOND_LAST_QUANTILE = 0.15  # of the range: what is slower still would squeeze all the others into one bin


def latency_histogram(
    query_ms: NDArray[np.floating],
    quantiles: Sequence[tuple[str, float]],
    description: str,
    width: float,
    identifier: str,
) -> Markup:
    """Draw `query_ms`, shape (processes, queries), with `quantiles` as (label, milliseconds) in ascending order."""
    samples = np.sort(query_ms[np.isfinite(query_ms)].astype(np.float64).ravel())
    low, last = float(samples[0]), max(ms for _, ms in quantiles)
    spread = last - low if last > low else max(low, 1e-6) * 0.2
    low, high = max(0.0, low - 0.04 * spread), low + (1 + BEYOND_LAST_QUANTILE) * spread
    x = LinearScale(low, high, LEFT, width - RIGHT)
    floor = TOP + PLOT_HEIGHT
    strips_top = floor + AXIS_HEIGHT + 26
    legend = "each process: fastest to p99, median and middle half"
    return drawing(
        width,
        strips_top + STRIP_HEIGHT * len(query_ms) + 4,
        identifier,
        "Time of single queries",
        description,
        *_bars(samples, x, floor, bins=32 if width < 420 else 64),
        *_axis(x, floor, width),
        *_quantile_marks(quantiles, x, floor),
        text(LEFT, strips_top - 6, legend, class_="note"),
        *(_process_strip(row, index, x, strips_top) for index, row in enumerate(query_ms)),
    )


def _bars(samples: NDArray[np.float64], x: LinearScale, floor: float, bins: int) -> list[Markup]:
    shown = samples[samples <= x.high]
    counts, edges = np.histogram(shown, bins=bins, range=(x.low, x.high))
    tallest = max(int(counts.max()), 1)
    parts = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            height = max(PLOT_HEIGHT * count / tallest, 1.5)
            caption = title(f"{left:.4g} to {right:.4g} ms: {count:,} queries")
            box = {"x": x(left) + 0.5, "width": max(x(right) - x(left) - 1, 0.5)}
            parts.append(tag("rect", caption, y=floor - height, height=height, class_="fill", **box))
    beyond = len(samples) - len(shown)
    if beyond:
        note = f"{beyond:,} slower, up to {samples[-1]:.3g} ms →"
        parts.append(text(x.end, floor + 38, note, class_="note", anchor="end"))
    return parts


def _axis(x: LinearScale, floor: float, width: float) -> list[Markup]:
    parts = [tag("line", x1=x.start, x2=x.end, y1=floor, y2=floor, class_="axis")]
    for value in linear_ticks(x.low, x.high, 4 if width < 420 else 8):
        parts.append(tag("line", x1=x(value), x2=x(value), y1=floor, y2=floor + 4, class_="axis"))
        parts.append(text(x(value), floor + 18, f"{value:.4g}", anchor="middle"))
    parts.append(text(x.start, floor + 38, "milliseconds a query", class_="caption"))
    return parts


def _quantile_marks(quantiles: Sequence[tuple[str, float]], x: LinearScale, floor: float) -> list[Markup]:
    """One line a quantile; each label stands one step lower than the one before, so near quantiles stay readable."""
    parts = []
    for step, (name, ms) in enumerate(quantiles):
        at, y = x.clamped(ms), 14.0 + 17.0 * step
        label = f"{name} {ms:#.3g} ms"
        fits = at + 6 + text_width(label) <= x.end
        parts.append(tag("line", x1=at, x2=at, y1=y - 10, y2=floor, class_="target"))
        parts.append(
            text(at + 6 if fits else at - 6, y, label, class_="note strong", anchor="start" if fits else "end")
        )
    return parts


def _process_strip(row: NDArray[np.floating], index: int, x: LinearScale, top: float) -> Markup:
    values = row[np.isfinite(row)]
    if not values.size:
        return Markup("")
    quarter, median, three_quarters, p99 = (float(v) for v in np.quantile(values, [0.25, 0.5, 0.75, 0.99]))
    y = top + STRIP_HEIGHT * index + STRIP_HEIGHT / 2
    caption = f"process {index + 1}: median {median:.4g} ms, p99 {p99:.4g} ms, {values.size:,} queries"
    return tag(
        "g",
        title(caption),
        tag("line", x1=x.clamped(float(values.min())), x2=x.clamped(p99), y1=y, y2=y, class_="link"),
        tag("line", x1=x.clamped(quarter), x2=x.clamped(three_quarters), y1=y, y2=y, class_="middle-half"),
        tag("circle", cx=x.clamped(median), cy=y, r=3.5, class_="dot"),
        tag("line", x1=x.clamped(p99), x2=x.clamped(p99), y1=y - 4, y2=y + 4, class_="whisker"),
    )
