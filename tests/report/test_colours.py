"""Every colour of text can be read on its ground: contrast after WCAG 2, level AA."""

from __future__ import annotations

import re

import pytest

from hardbit.report.rendering import chart_styles

TEXT = ("ink", "soft", "pass", "fail", "inconclusive", "wrong-engine", "env-mismatch")
GROUNDS = ("paper", "card", "faint")
LEAST = 4.5  # for text of any size


def themes() -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", chart_styles(), flags=re.S)
    return dict(
        zip(("light", "dark", "print"), (dict(re.findall(r"--([\w-]+): (#\w{6})", b)) for b in blocks), strict=True)
    )


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, WCAG 2.2."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_gives_the_known_extremes() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("ground", GROUNDS)
def test_text_stands_out(theme: str, text: str, ground: str) -> None:
    colours = themes()[theme]
    assert contrast(colours[text], colours[ground]) >= LEAST
