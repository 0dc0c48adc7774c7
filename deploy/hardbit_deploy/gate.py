"""What was promised: gate.toml, or the `gate` object of a bundle, read into frozen rules.

Boundary: reads and refuses; whether a promise is kept is judged in verdict.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardbit_deploy.errors import HardbitError

__all__ = [
    "AttackRule",
    "BaselineRule",
    "EnvironmentRule",
    "Gate",
    "LatencyRule",
    "RateRule",
    "Settings",
    "load_gate",
    "parse_gate",
    "version_satisfies",
]

DEFAULT_MARGIN = 0.01


@dataclass(frozen=True)
class RateRule:
    """A promised rate: no worse than `reference`, less `margin`."""

    reference: float
    margin: float = DEFAULT_MARGIN


@dataclass(frozen=True)
class AttackRule:
    """What the promise was made against: a check in another ball, or with less effort, says nothing about it."""

    norm: str | None = None
    eps_255: float | None = None  # exactly
    min_steps: int | None = None
    min_restarts: int | None = None


@dataclass(frozen=True)
class BaselineRule:
    """An earlier result on the same images: no worse than it, pair by pair, less `margin`."""

    result: Path
    margin: float = DEFAULT_MARGIN


@dataclass(frozen=True)
class LatencyRule:
    """Upper limits of percentiles of `query_ms`."""

    max_p50_ms: float | None = None
    max_p90_ms: float | None = None
    max_p99_ms: float | None = None


@dataclass(frozen=True)
class EnvironmentRule:
    """Where the promise holds; elsewhere the verdict is ENV_MISMATCH."""

    machine: str | None = None
    onnxruntime: str | None = None
    min_grade: str | None = None


@dataclass(frozen=True)
class Settings:
    """`confidence` of every one-sided bound; `power` with which `images_needed` would decide."""

    confidence: float = 0.95
    power: float = 0.80


@dataclass(frozen=True)
class Gate:
    """All rules of a gate; a rule that is None was not asked for."""

    clean: RateRule | None = None
    robust: RateRule | None = None
    attack: AttackRule | None = None
    baseline: BaselineRule | None = None
    latency: LatencyRule | None = None
    environment: EnvironmentRule | None = None
    settings: Settings = field(default_factory=Settings)


def load_gate(path: str | Path) -> Gate:
    """Read gate.toml; a baseline's path is relative to the folder of the file.

    Raises HardbitError that names the line (or the key, where the line cannot be told).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HardbitError(f"the gate cannot be read: {error}", where=str(path)) from error
    toml = _toml()
    try:
        table = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise HardbitError(f"not valid TOML: {error}", where=str(path)) from error

    def place(section: str, key: str) -> str:
        name = ".".join(filter(None, (section, key)))
        line = _line_of(text, section, key) if key else _line_of(text, "", section)
        return f"{path}:{line}: {name}" if line else f"{path}: {name}"

    return _parse(table, place, path.parent)


def parse_gate(table: Mapping[str, Any], where: str = "gate", folder: Path | None = None) -> Gate:
    """Read the `gate` object of a manifest or a recipe.

    `where` names its origin in messages, `folder` is what a baseline's path is relative to.
    """
    return _parse(table, lambda section, key: ".".join(filter(None, (where, section, key))), folder or Path())


def version_satisfies(version: str, specifier: str) -> bool:
    """Whether a release such as "1.32.0" satisfies a specifier such as ">=1.20,<2"; pre-release tags are ignored."""
    found = _release(version)
    for operator, wanted in _clauses(specifier):
        length = max(len(found), len(wanted))
        left, right = (numbers + (0,) * (length - len(numbers)) for numbers in (found, wanted))
        if not _COMPARISONS[operator](left, right):
            return False
    return True


_Place = Callable[[str, str], str]
_Reader = Callable[[Any], Any]

_COMPARISONS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda left, right: left >= right,
    "<=": lambda left, right: left <= right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
}


def _parse(table: Mapping[str, Any], place: _Place, folder: Path) -> Gate:
    _refuse_unknown(table, _SECTIONS, lambda key: place("", key))
    rules: dict[str, Any] = {}
    for section, (rule, readers) in _SECTIONS.items():
        if section not in table:
            continue
        entries = table[section]
        if not isinstance(entries, Mapping):
            raise HardbitError("must be a table", where=place(section, ""), remedy=f"write it as [{section}]")
        _refuse_unknown(entries, readers, lambda key, section=section: place(section, key))  # type: ignore[misc]
        values = {key: _read(readers[key], value, place(section, key)) for key, value in entries.items()}
        for required in _REQUIRED.get(section, ()):
            if required not in values:
                raise HardbitError(f"lacks the key {required}", where=place(section, ""))
        rules[section] = rule(**values)
        _check_rule(section, rules[section], place)
    if (baseline := rules.get("baseline")) is not None:
        rules["baseline"] = BaselineRule(folder / baseline.result, baseline.margin)
    return Gate(**rules)


def _check_rule(section: str, rule: Any, place: _Place) -> None:
    if isinstance(rule, RateRule) and rule.margin >= rule.reference:
        raise HardbitError(
            f"a margin of {rule.margin:g} leaves nothing of a reference of {rule.reference:g}",
            where=place(section, "margin"),
        )
    if isinstance(rule, LatencyRule) and rule == LatencyRule():
        raise HardbitError(
            "limits nothing", where=place(section, ""), remedy="set max_p50_ms, max_p90_ms or max_p99_ms"
        )


def _read(reader: _Reader, value: Any, where: str) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise HardbitError(f"{error}, found {value!r}", where=where) from None


def _refuse_unknown(table: Mapping[str, Any], known: Mapping[str, Any], place: Callable[[str], str]) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            raise HardbitError("unknown key", where=place(str(key)), remedy=remedy)


def _number(low: float, high: float, description: str) -> _Reader:
    """A number strictly between `low` and `high`; booleans, which Python takes for integers, are no numbers."""

    def read(value: Any) -> float:
        try:
            if isinstance(value, int | float) and not isinstance(value, bool) and low < float(value) < high:
                return float(value)
        except OverflowError:  # a whole number that no double can hold
            pass
        raise ValueError(f"must be {description}")

    return read


def _reference(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 1:
        return 1.0
    return float(_rate(value))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def _grade(value: Any) -> str:
    if value not in ("A", "B", "C"):
        raise ValueError('must be "A", "B" or "C"')
    return str(value)


def _specifier(value: Any) -> str:
    text = _text(value)
    _clauses(text)
    return text


def _norm(value: Any) -> str:
    if value not in ("linf", "l2"):
        raise ValueError('must be "linf" or "l2"')
    return str(value)


def _effort(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number of at least 1")
    return value


_radius = _number(0, float("inf"), "a radius in grey levels of 255 above 0")
_rate = _number(0, 1, "a rate above 0, such as 0.66 for 66 %")
_margin = _number(1e-6, 1, "a rate such as 0.01 for one point: no number of images can see a margin of nothing")
_milliseconds = _number(0, float("inf"), "a number of milliseconds above 0")
_confidence = _number(0.5, 1, "a probability between 0.5 and 1")

_SECTIONS: dict[str, tuple[Any, dict[str, _Reader]]] = {
    "clean": (RateRule, {"reference": _reference, "margin": _margin}),
    "robust": (RateRule, {"reference": _reference, "margin": _margin}),
    "attack": (AttackRule, {"norm": _norm, "eps_255": _radius, "min_steps": _effort, "min_restarts": _effort}),
    "baseline": (BaselineRule, {"result": _text, "margin": _margin}),
    "latency": (LatencyRule, dict.fromkeys(("max_p50_ms", "max_p90_ms", "max_p99_ms"), _milliseconds)),
    "environment": (EnvironmentRule, {"machine": _text, "onnxruntime": _specifier, "min_grade": _grade}),
    "settings": (Settings, {"confidence": _confidence, "power": _confidence}),
}
_REQUIRED = {"clean": ("reference",), "robust": ("reference",), "baseline": ("result",)}


def _clauses(specifier: str) -> list[tuple[str, tuple[int, ...]]]:
    clauses = []
    for clause in specifier.split(","):
        match = re.fullmatch(r"\s*(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)\s*", clause)
        if match is None:
            raise ValueError('must be versions such as ">=1.20" or ">=1.20,<2"')
        clauses.append((match[1], _release(match[2])))
    return clauses


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def _line_of(text: str, section: str, key: str) -> int | None:
    """Line of `key` under `[section]`, found by its text: tomllib keeps no positions. None for unusual spellings."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            current = header[1]
            if not section and current == key:
                return number
        elif re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line) and current == section:
            return number
    return None


def _toml() -> Any:
    """The standard library's reader, or tomli, its origin, on Python 3.10."""
    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib  # type: ignore[no-redef,import-not-found]
    return tomllib
