"""SVG elements as escaped markup: the only place where a string becomes a tag."""

from __future__ import annotations

from markupsafe import Markup, escape

__all__ = ["drawing", "fluid", "shorten", "tag", "text", "text_width", "title"]

# A wide sans-serif, averaged over digits and lower case: an estimate that errs on the wide side keeps labels apart.
EM_PER_CHARACTER = 0.58
LABEL_SIZE = 12.0  # px; the size that charts.css gives to text in a chart


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One element. `class_` becomes `class`, underscores become hyphens, None and False leave an attribute out."""
    parts = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _number(value))
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    inside = Markup("").join(child if isinstance(child, Markup) else escape(str(child)) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(parts), inside)


def drawing(width: float, height: float, identifier: str, heading: str, description: str, *children: object) -> Markup:
    """A chart with its own coordinates, scaled to its container; `heading` and `description` are what is read aloud."""
    return tag(
        "svg",
        tag("title", heading, id=f"{identifier}-title"),
        tag("desc", description, id=f"{identifier}-desc"),
        *children,
        id=identifier,
        class_="chart",
        role="img",
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        aria_labelledby=f"{identifier}-title",
        aria_describedby=f"{identifier}-desc",
    )


def fluid(height: float, heading: str, *children: object, class_: str = "bar") -> Markup:
    """A strip as wide as its container: children place themselves in per cent, so nothing is ever stretched."""
    return tag(
        "svg", *children, class_=class_, role="img", width="100%", height=height, aria_label=heading, focusable="false"
    )


def text(x: float | str, y: float, content: str, class_: str = "tick", anchor: str = "start") -> Markup:
    """A label whose baseline lies at `y`."""
    return tag("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def title(content: str) -> Markup:
    """What a browser shows when the pointer rests on the element around it."""
    return tag("title", content)


def text_width(content: str, size: float = LABEL_SIZE) -> float:
    """Estimated width in px: good enough to keep labels apart, never used to align them."""
    return len(content) * size * EM_PER_CHARACTER


def shorten(content: str, limit: int) -> str:
    """At most `limit` characters, the cut made visible."""
    return content if len(content) <= limit else content[: limit - 1].rstrip() + "…"


def _number(value: object) -> object:
    """Two decimals are a hundredth of a pixel: more only makes the file longer."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
