"""TOML as text: writing a document, and finding the line of a key in what a user wrote.

`tomllib` reads TOML and tells neither lines nor writes; both are small for the values that recipes hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tomllib

__all__ = ["KeyPath", "key_lines", "to_toml"]

KeyPath = tuple[str | int, ...]
"""Where a value stands: names of tables and keys, numbers of elements in arrays of tables."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DOTTED_KEY = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED_KEY})[ \t]*\]")
_ASSIGNMENT = re.compile(rf"[ \t]*({_DOTTED_KEY})[ \t]*=")
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:[^"\\\n]|\\.)*"|' r"'[^'\n]*'|#[^\n]*|[\[\]{}\n]", re.DOTALL
)


def to_toml(document: dict[str, Any]) -> str:
    """A TOML document with the values of `document`: text, numbers, booleans, lists of these, tables, lists of tables.

    Keys that hold plain values come before the tables. Raises TypeError for any other value.
    """
    return "\n".join(_table(document, ())).lstrip("\n") + "\n"


def _table(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    nested = {key: value for key, value in table.items() if _is_table(value) or _is_table_list(value)}
    for key, value in table.items():
        if key not in nested:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in nested.items():
        name = ".".join(map(_key, (*path, key)))
        for element in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            yield from _table(element, (*path, key))


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_table_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))


def _key(key: str) -> str:
    return key if _BARE_KEY.match(key) else _text(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float):
        return repr(value)  # repr of inf and nan is TOML's too
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"a recipe has no place for {type(value).__name__}")


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every table header and key of a valid TOML `text`; keys of inline tables stand on the line
    of the key that holds the table.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    position, line = 0, 1
    while position < len(text):
        if header := _HEADER.match(text, position):
            table = _enter(_names(header[2]), header[1] == "[[", counts)
            lines.setdefault(table, line)
            position = header.end()
        elif assignment := _ASSIGNMENT.match(text, position):
            names = _names(assignment[1])
            for depth in range(1, len(names) + 1):
                lines.setdefault((*table, *names[:depth]), line)
            position = assignment.end()
        end = _end_of_statement(text, position)
        line += text.count("\n", position, end)
        position = end
    return lines


def _enter(names: KeyPath, is_element: bool, counts: dict[KeyPath, int]) -> KeyPath:
    """The path of a table header: names on the way that are arrays of tables stand for their last element."""
    path: KeyPath = ()
    for depth, name in enumerate(names):
        path = (*path, name)
        if is_element and depth == len(names) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _names(dotted: str) -> KeyPath:
    parts = re.findall(_KEY, dotted)
    return tuple(next(iter(tomllib.loads(f"{part} = 0"))) for part in parts)


def _end_of_statement(text: str, position: int) -> int:
    """The position after the line break that ends a value: not within strings, comments or brackets."""
    depth = 0
    while token := _TOKEN.search(text, position):
        position = token.end()
        if token[0] == "\n" and depth == 0:
            return position
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth = max(0, depth - 1)
    return len(text)
