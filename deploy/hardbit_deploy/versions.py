"""Versions against specifiers such as ">=1.20,<2": numbers only, for a board has no `packaging`."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["parse_specifier", "version_satisfies"]

Release = tuple[int, ...]

_COMPARISONS: dict[str, Callable[[Release, Release], bool]] = {
    ">=": lambda left, right: left >= right,
    "<=": lambda left, right: left <= right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
}


def version_satisfies(version: str, specifier: str) -> bool:
    """Whether a release such as "1.32.0" satisfies a specifier such as ">=1.20,<2"; pre-release tags are ignored."""
    found = _release(version)
    for operator, wanted in parse_specifier(specifier):
        length = max(len(found), len(wanted))
        left, right = (numbers + (0,) * (length - len(numbers)) for numbers in (found, wanted))
        if not _COMPARISONS[operator](left, right):
            return False
    return True


def parse_specifier(specifier: str) -> list[tuple[str, Release]]:
    """Operator and release of every clause; raises ValueError."""
    clauses = []
    for clause in specifier.split(","):
        match = re.fullmatch(r"\s*(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)\s*", clause)
        if match is None:
            raise ValueError('must be versions such as ">=1.20" or ">=1.20,<2"')
        clauses.append((match[1], _release(match[2])))
    return clauses


def _release(version: str) -> Release:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()
