"""How single values of a gate are read: a reader returns the value, or raises ValueError that says what it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hardbit_deploy.alarm import ACCEPTABLE
from hardbit_deploy.suite import SURROGATES
from hardbit_deploy.versions import parse_specifier

Reader = Callable[[Any], Any]


def number(low: float, high: float, description: str) -> Reader:
    """Reads a number strictly between `low` and `high`; booleans, which Python takes for integers, are no numbers."""

    def read(value: Any) -> float:
        try:
            if isinstance(value, int | float) and not isinstance(value, bool) and low < float(value) < high:
                return float(value)
        except OverflowError:  # a whole number that no double can hold
            pass
        raise ValueError(f"must be {description}")

    return read


def reference(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 1:
        return 1.0
    return float(rate(value))


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def grade(value: Any) -> str:
    if value not in ("A", "B", "C"):
        raise ValueError('must be "A", "B" or "C"')
    return str(value)


def specifier(value: Any) -> str:
    parse_specifier(text(value))
    return str(value)


def norm(value: Any) -> str:
    if value not in ("linf", "l2"):
        raise ValueError('must be "linf" or "l2"')
    return str(value)


def effort(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number of at least 1")
    return value


def alarm(value: Any) -> str:
    if value not in ACCEPTABLE:
        raise ValueError(f"must be one of {', '.join(ACCEPTABLE)}: the others are defects to mend")
    return str(value)


def surrogates(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or any(name not in SURROGATES for name in value):
        raise ValueError(f"must be a list of some of {', '.join(SURROGATES)}")
    return tuple(value)


radius = number(0, float("inf"), "a radius in grey levels of 255 above 0")
rate = number(0, 1, "a rate above 0, such as 0.66 for 66 %")
margin = number(1e-6, 1, "a rate such as 0.01 for one point: no number of images can see a margin of nothing")
milliseconds = number(0, float("inf"), "a number of milliseconds above 0")
confidence = number(0.5, 1, "a probability between 0.5 and 1")
