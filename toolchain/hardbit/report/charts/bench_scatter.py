"""Latency against robustness: one vertical bar-bell a bundle, clean accuracy on top, robust accuracy below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hardbit.report.charts.interval_bar import Rate
from hardbit.report.charts.scale import LinearScale, LogScale, linear_ticks, log_ticks
from hardbit.report.charts.svg import drawing, shorten, tag, text, text_width, title

__all__ = ["BenchPoint", "bench_scatter", "frontier"]

HEIGHT = 400.0
TOP, RIGHT, BOTTOM, LEFT = 30.0, 20.0, 50.0, 44.0
LOG_FROM_RATIO = 6.0  # below it a linear axis spreads the points well enough
LABEL_HEIGHT = 15.0


@dataclass(frozen=True)
class BenchPoint:
    """One bundle: accuracies with intervals, the median query time with its interval, and the verdict as a class."""

    name: str
    clean: Rate | None
    robust: Rate
    p50_ms: float
    p50_interval_ms: tuple[float, float] | None
    verdict: str
    accepted_alarms: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """The verdict, and the alarms that the gate knew of."""
        return self.verdict + (f", accepted {', '.join(self.accepted_alarms)}" if self.accepted_alarms else "")


def frontier(points: Sequence[BenchPoint]) -> list[BenchPoint]:
    """Of the points that PASS without an alarm, those that no other beats in latency and robustness, fastest first.

    The rest stays out: an accuracy that broke its gate, or that an alarm casts doubt on, is nothing to be beaten by.
    """
    best: list[BenchPoint] = []
    sound = (point for point in points if point.verdict == "PASS" and not point.accepted_alarms)
    for point in sorted(sound, key=lambda p: (p.p50_ms, -p.robust[0])):
        if not best or point.robust[0] > best[-1].robust[0]:
            best.append(point)
    return best


def bench_scatter(points: Sequence[BenchPoint], description: str, width: float, identifier: str) -> Markup:
    """Draw `points`; a stepped line joins the `frontier`."""
    x = _time_scale(points, width)
    shares = [share for point in points for rate in (point.clean, point.robust) if rate for share in rate]
    floor = max(0.0, (min(shares, default=0.0) * 10 // 1) / 10)
    y = LinearScale(floor, min(1.0, -(-max(shares, default=1.0) * 10 // 1) / 10), HEIGHT - BOTTOM, TOP)
    return drawing(
        width,
        HEIGHT,
        identifier,
        "Latency against robustness",
        description,
        *_axes(x, y, width),
        _frontier_line(frontier(points), x, y),
        *(_barbell(point, x, y) for point in points),
        *_labels(points, x, y, width),
    )


def _time_scale(points: Sequence[BenchPoint], width: float) -> LinearScale | LogScale:
    times = [ms for point in points for ms in (point.p50_ms, *(point.p50_interval_ms or ()))]
    fast, slow = min(times), max(times)
    if fast > 0 and slow / fast > LOG_FROM_RATIO:
        return LogScale(fast / 1.4, slow * 1.6, LEFT, width - RIGHT)
    return LinearScale(0.0, slow * 1.25 or 1.0, LEFT, width - RIGHT)


def _axes(x: LinearScale | LogScale, y: LinearScale, width: float) -> list[Markup]:
    parts = []
    for share in linear_ticks(y.low, y.high, 6):
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(share), y2=y(share), class_="grid"))
        parts.append(text(LEFT - 8, y(share) + 4, f"{100 * share:.0f}", anchor="end"))
    marks = (
        log_ticks(x.low, x.high) if isinstance(x, LogScale) else linear_ticks(x.low, x.high, 4 if width < 420 else 8)
    )
    parts.append(tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    for ms in marks:
        parts.append(tag("line", x1=x(ms), x2=x(ms), y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(text(x(ms), y.start + 18, f"{ms:.3g}", anchor="middle"))
    parts.append(text(4, 14, "accuracy, %", class_="caption"))
    logarithmic = ", logarithmic" if isinstance(x, LogScale) else ""
    caption = f"median milliseconds a query{logarithmic}"
    parts.append(text((x.start + x.end) / 2, HEIGHT - 10, caption, class_="caption", anchor="middle"))
    return parts


def _frontier_line(best: Sequence[BenchPoint], x: LinearScale | LogScale, y: LinearScale) -> Markup:
    if len(best) < 2:
        return Markup("")
    steps = [(x(best[0].p50_ms), y(best[0].robust[0]))]
    for point in best[1:]:
        steps += [(x(point.p50_ms), steps[-1][1]), (x(point.p50_ms), y(point.robust[0]))]
    return tag("polyline", points=" ".join(f"{at:.2f},{height:.2f}" for at, height in steps), class_="frontier")


def _barbell(point: BenchPoint, x: LinearScale | LogScale, y: LinearScale) -> Markup:
    at = x(point.p50_ms)
    robust, low, high = point.robust
    caption = f"{point.name}: {100 * robust:.1f} % robust, {point.p50_ms:.3g} ms a query, {point.outcome}"
    parts = [title(caption)]
    if point.clean:
        parts.append(tag("line", x1=at, x2=at, y1=y(robust), y2=y(point.clean[0]), class_="link"))
        parts.append(tag("circle", cx=at, cy=y(point.clean[0]), r=4, class_="hollow"))
    if point.p50_interval_ms:
        fast, slow = (x(ms) for ms in point.p50_interval_ms)
        parts.append(tag("line", x1=fast, x2=slow, y1=y(robust), y2=y(robust), class_="whisker"))
    parts.append(tag("line", x1=at, x2=at, y1=y(low), y2=y(high), class_="whisker thick"))
    parts.append(tag("circle", cx=at, cy=y(robust), r=6, class_="dot"))
    return tag("g", *parts, class_=f"verdict-{point.verdict}")


def _labels(points: Sequence[BenchPoint], x: LinearScale | LogScale, y: LinearScale, width: float) -> list[Markup]:
    """Names beside the robust end, moved down until no two of them meet."""
    placed: list[tuple[float, float, float]] = []  # left, right, baseline
    parts = []
    for point in sorted(points, key=lambda p: -p.robust[0]):
        label = shorten(point.name, 18 if width < 420 else 32)
        length = text_width(label)
        at = x(point.p50_ms)
        left = at + 11 if at + 11 + length <= x.end + RIGHT - 4 else at - 11 - length
        left = max(left, 2.0)
        baseline = y(point.robust[0]) + 4
        while _covered(left, left + length, baseline, placed):
            baseline += 2.0
        placed.append((left, left + length, baseline))
        parts.append(text(left, baseline, label, class_="note strong halo"))
    return parts


def _covered(left: float, right: float, baseline: float, placed: Sequence[tuple[float, float, float]]) -> bool:
    return any(left < end and right > start and abs(baseline - line) < LABEL_HEIGHT for start, end, line in placed)
