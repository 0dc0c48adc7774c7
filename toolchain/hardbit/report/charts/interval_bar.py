"""Rates as bars in a table's cell: what survived, and how sure that is."""

from __future__ import annotations

from markupsafe import Markup

from hardbit.report.charts.svg import fluid, tag

__all__ = ["Rate", "dumbbell", "interval_bar", "rate_axis"]

HEIGHT = 22
MIDDLE = HEIGHT / 2

Rate = tuple[float, float, float]  # estimate, lower end, upper end; each a share from 0 to 1


def interval_bar(rate: Rate, heading: str, mark: float | None = None, strong: bool = False) -> Markup:
    """A bar up to the estimate with its interval as a whisker; `mark` is a line to compare with."""
    estimate, low, high = rate
    return fluid(
        HEIGHT,
        heading,
        *_quarters(),
        tag(
            "rect",
            x=0,
            y=MIDDLE - 5,
            width=_percent(estimate),
            height=10,
            rx=2,
            class_="fill strong" if strong else "fill",
        ),
        tag("line", x1=_percent(mark), x2=_percent(mark), y1=1, y2=HEIGHT - 1, class_="target")
        if mark is not None
        else "",
        tag("line", x1=_percent(low), x2=_percent(high), y1=MIDDLE, y2=MIDDLE, class_="whisker"),
        *(
            tag("line", x1=_percent(end), x2=_percent(end), y1=MIDDLE - 4, y2=MIDDLE + 4, class_="whisker")
            for end in (low, high)
        ),
    )


def dumbbell(clean: Rate, robust: Rate, heading: str) -> Markup:
    """Two rates of the same images and the distance that the attack makes: hollow is clean, filled is under attack."""
    return fluid(
        HEIGHT,
        heading,
        *_quarters(),
        tag("line", x1=_percent(robust[0]), x2=_percent(clean[0]), y1=MIDDLE, y2=MIDDLE, class_="link"),
        tag("line", x1=_percent(robust[1]), x2=_percent(robust[2]), y1=MIDDLE, y2=MIDDLE, class_="whisker"),
        tag("circle", cx=_percent(clean[0]), cy=MIDDLE, r=4, class_="hollow"),
        tag("circle", cx=_percent(robust[0]), cy=MIDDLE, r=4.5, class_="dot"),
    )


def rate_axis() -> Markup:
    """The head of a column of bars: 0 to 100 %."""
    ends = {0: "start", 50: "middle", 100: "end"}
    labels = (
        tag("text", f"{at}\u00a0%" if at == 100 else str(at), x=f"{at}%", y=11, class_="tick", text_anchor=anchor)
        for at, anchor in ends.items()
    )
    return fluid(14, "scale from 0 to 100 %", *labels, class_="bar axis")


def _quarters() -> list[Markup]:
    return [tag("line", x1=f"{at}%", x2=f"{at}%", y1=0, y2=HEIGHT, class_="grid") for at in (0, 25, 50, 75, 100)]


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
