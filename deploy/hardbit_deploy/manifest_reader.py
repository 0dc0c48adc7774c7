"""The JSON of a manifest, read with care: every value checked, every refusal with the path to the field.

Boundary: knows the shapes of values, not what they mean.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from hardbit_deploy.errors import BundleError

__all__ = ["MANIFEST_NAME", "Fields", "FileEntry", "json_object"]

MANIFEST_NAME = "manifest.json"

_SURROGATE = re.compile("[\ud800-\udfff]")
_DEEPEST = 32  # levels of objects and arrays


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file: lower-case SHA-256 and size."""

    sha256: str
    bytes: int


def json_object(data: bytes) -> dict[str, Any]:
    """The one object that `data` is the JSON of; raises BundleError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            raise ValueError("a key is given twice")
        return document

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"is not valid JSON ({error})", MANIFEST_NAME, "build or copy the bundle anew") from None
    if not isinstance(document, dict):
        raise BundleError("is not a JSON object", MANIFEST_NAME, "point at the folder of a bundle")
    _refuse_odd_values(document, 0)
    return document


def _refuse_odd_values(value: Any, depth: int) -> None:
    """What Python's reader takes and no result could be written with: half characters, 1e999, numbers without end."""
    problem = ""
    if depth > _DEEPEST:
        problem = f"is nested deeper than {_DEEPEST} levels"
    elif isinstance(value, str):
        problem = "holds half a character (a lone surrogate)" * bool(_SURROGATE.search(value))
    elif isinstance(value, float):
        problem = "holds a number too large for a double" * (not math.isfinite(value))
    elif isinstance(value, int):
        problem = "holds a whole number of more than 64 bits" * (not -(2**63) <= value < 2**63)
    if problem:
        raise BundleError(problem, MANIFEST_NAME, "build or copy the bundle anew")
    if isinstance(value, dict):
        for key, entry in value.items():
            _refuse_odd_values(key, depth + 1)
            _refuse_odd_values(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _refuse_odd_values(entry, depth + 1)


class Fields:
    """One object of the manifest and the path to it; reads typed fields or refuses with the full path."""

    def __init__(self, document: Mapping[str, Any], path: str) -> None:
        self.document = document
        self.path = path

    def refuse(self, key: str, problem: str, remedy: str) -> NoReturn:
        path = f"{self.path}.{key}" if self.path else key
        raise BundleError(f"{path} {problem}", MANIFEST_NAME, remedy)

    def value(self, key: str) -> Any:
        if key not in self.document:
            self.refuse(key, "is missing", "build the bundle anew")
        return self.document[key]

    def expect(self, key: str, condition: bool, kind: str) -> Any:
        if not condition:
            self.refuse(key, f"is {str(self.document[key])[:40]!r}, not {kind}", "build the bundle anew")
        return self.document[key]

    def string(self, key: str) -> str:
        value = self.value(key)
        good = isinstance(value, str) and 0 < len(value) <= 1024 and value.isprintable()
        return str(self.expect(key, good, "a string of one line"))

    def integer(self, key: str, least: int, most: int = 2**62) -> int:
        value = self.value(key)
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return int(
            self.expect(key, good, f"a whole number of at least {least}" + (f" and at most {most}" * (most < 2**62)))
        )

    def number(self, key: str) -> float:
        value = self.value(key)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(self.expect(key, good, "a finite number"))

    def positive(self, key: str) -> float:
        value = self.number(key)
        return float(self.expect(key, value > 0, "above zero") and value)

    def object(self, key: str) -> Fields:
        value = self.value(key)
        self.expect(key, isinstance(value, dict), "an object")
        return Fields(value, f"{self.path}.{key}" if self.path else key)

    def array(self, key: str) -> list[Any]:
        value = self.value(key)
        return list(self.expect(key, isinstance(value, list), "an array"))

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.array(key)
        self.expect(key, all(isinstance(value, str) for value in values), "an array of strings")
        return tuple(values)

    def shape(self, key: str) -> tuple[int, int, int]:
        values = self.array(key)
        good = len(values) == 3 and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
        self.expect(key, good, "channels, height, width")
        return values[0], values[1], values[2]

    def listed(self, key: str, files: Mapping[str, FileEntry]) -> str:
        name = self.string(key)
        self.expect(key, name in files, "one of the bundle's files")
        return name
