"""What was promised: gate.toml, or the `gate` object of a bundle, read into frozen rules.

Boundary: reads and refuses; whether a promise is kept is judged in verdict.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardbit_deploy import gate_values as values
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.gate_values import Reader

__all__ = [
    "AttackRule",
    "BaselineRule",
    "EnvironmentRule",
    "Gate",
    "KnownAlarm",
    "LatencyRule",
    "RateRule",
    "Settings",
    "load_gate",
    "parse_gate",
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
    min_square_queries: int | None = None
    surrogates: tuple[str, ...] | None = None  # these at least


@dataclass(frozen=True)
class BaselineRule:
    """An earlier result on the same images: no worse than it, pair by pair, less `margin`."""

    result: Path
    margin: float = DEFAULT_MARGIN


@dataclass(frozen=True)
class KnownAlarm:
    """An alarm that may go off without making the verdict inconclusive, and why; with `most`, up to that value only."""

    name: str
    reason: str
    most: float | None = None


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
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    power_mode: str | None = None
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
    known_alarms: tuple[KnownAlarm, ...] = ()


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


_Place = Callable[[str, str], str]


def _parse(table: Mapping[str, Any], place: _Place, folder: Path) -> Gate:
    _refuse_unknown(table, (*_SECTIONS, _KNOWN_ALARMS), lambda key: place("", key))
    rules: dict[str, Any] = {}
    for section, (rule, readers) in _SECTIONS.items():
        if section not in table:
            continue
        entries = table[section]
        if not isinstance(entries, Mapping):
            raise HardbitError("must be a table", where=place(section, ""), remedy=f"write it as [{section}]")
        rules[section] = rule(**_values(entries, section, readers, _REQUIRED.get(section, ()), place))
        _check_rule(section, rules[section], place)
    if (baseline := rules.get("baseline")) is not None:
        rules["baseline"] = BaselineRule(folder / baseline.result, baseline.margin)
    return Gate(**rules, known_alarms=_known_alarms(table.get(_KNOWN_ALARMS, ()), place))


def _values(
    entries: Mapping[str, Any], section: str, readers: Mapping[str, Reader], required: Iterable[str], place: _Place
) -> dict[str, Any]:
    _refuse_unknown(entries, readers, lambda key: place(section, key))
    values = {key: _read(readers[key], value, place(section, key)) for key, value in entries.items()}
    for key in required:
        if key not in values:
            raise HardbitError(f"lacks the key {key}", where=place(section, ""))
    return values


def _known_alarms(entries: Any, place: _Place) -> tuple[KnownAlarm, ...]:
    alarms: list[KnownAlarm] = []
    if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
        raise HardbitError("must be a list of tables", place(_KNOWN_ALARMS, ""), f"write each as [[{_KNOWN_ALARMS}]]")
    for entry in entries:
        alarm = KnownAlarm(**_values(entry, _KNOWN_ALARMS, _ALARM_READERS, ("name", "reason"), place))
        if alarm.name in [other.name for other in alarms]:
            raise HardbitError(f"{alarm.name} is accepted twice", place(_KNOWN_ALARMS, "name"), "accept it once")
        alarms.append(alarm)
    return tuple(alarms)


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


def _read(reader: Reader, value: Any, where: str) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise HardbitError(f"{error}, found {value!r}", where=where) from None


def _refuse_unknown(table: Mapping[str, Any], known: Collection[str], place: Callable[[str], str]) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            raise HardbitError("unknown key", where=place(str(key)), remedy=remedy)


_SECTIONS: dict[str, tuple[Any, dict[str, Reader]]] = {
    "clean": (RateRule, {"reference": values.reference, "margin": values.margin}),
    "robust": (RateRule, {"reference": values.reference, "margin": values.margin}),
    "attack": (
        AttackRule,
        {
            "norm": values.norm,
            "eps_255": values.radius,
            **dict.fromkeys(("min_steps", "min_restarts", "min_square_queries"), values.effort),
            "surrogates": values.surrogates,
        },
    ),
    "baseline": (BaselineRule, {"result": values.text, "margin": values.margin}),
    "latency": (LatencyRule, dict.fromkeys(("max_p50_ms", "max_p90_ms", "max_p99_ms"), values.milliseconds)),
    "environment": (
        EnvironmentRule,
        {
            "machine": values.text,
            **dict.fromkeys(("onnxruntime", "tensorrt", "tensorrt_rtx"), values.specifier),
            "power_mode": values.text,
            "min_grade": values.grade,
        },
    ),
    "settings": (Settings, {"confidence": values.confidence, "power": values.confidence}),
}
_KNOWN_ALARMS = "known_alarms"
_ALARM_READERS: dict[str, Reader] = {"name": values.alarm, "reason": values.text, "most": values.rate}
_REQUIRED = {"clean": ("reference",), "robust": ("reference",), "baseline": ("result",)}


def _line_of(text: str, section: str, key: str) -> int | None:
    """Line of `key` under `[section]`, found by its text: tomllib keeps no positions. None for unusual spellings."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?\s*([\w.-]+)\s*\]\]?", line):
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
