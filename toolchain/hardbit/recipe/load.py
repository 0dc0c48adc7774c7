"""TOML text -> Recipe, or every problem of the text at once, each with its line, its key and a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import tomllib
from pydantic import BaseModel, ValidationError

from hardbit.recipe.combinations import impossible_combinations
from hardbit.recipe.defaults import resolve_defaults
from hardbit.recipe.schema import Recipe
from hardbit.recipe.toml_text import KeyPath, key_lines
from hardbit_deploy.errors import HardbitError

__all__ = ["Problem", "RecipeError", "load_recipe", "parse_recipe"]


@dataclass(frozen=True)
class Problem:
    """One mistake: the key that it is about, its line in the file (0: unknown), what is wrong, what to do."""

    path: KeyPath
    line: int
    message: str
    remedy: str = ""

    @property
    def key(self) -> str:
        """The path as it is written in TOML, elements of arrays of tables counted from 0."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text


class RecipeError(HardbitError):
    """All the problems of one recipe. Printed as one line for each."""

    def __init__(self, where: str, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(problem.message for problem in problems), where=where)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(HardbitError(p.message, self._place(p), p.remedy)) for p in self.problems)

    def _place(self, problem: Problem) -> str:
        line = f":{problem.line}" if problem.line else ""
        key = f": {problem.key}" if problem.path else ""
        return f"{self.where}{line}{key}"


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in the file `path`. Raises RecipeError with every problem of the file."""
    file = Path(path)
    if file.is_dir():
        file = file / "recipe.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HardbitError("there is no such recipe", where=str(path), remedy="name a recipe.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HardbitError(f"this recipe cannot be read: {error}", where=str(path)) from error
    return parse_recipe(text, where=str(file), folder=file.parent)


def parse_recipe(text: str, where: str = "recipe", folder: Path = Path()) -> Recipe:
    """The recipe in `text`; `where` names it in errors, relative paths in it start from `folder`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HardbitError(f"this is not TOML: {error}", where=where) from None
    resolved = resolve_defaults(document)
    recipe, problems = _validate(resolved, folder)
    if recipe is None or problems:
        lines = key_lines(text)
        placed = [Problem(p.path, _line(p.path, lines), p.message, p.remedy) for p in problems]
        raise RecipeError(where, tuple(sorted(placed, key=lambda problem: problem.line)))
    recipe._folder = folder
    return recipe


def _validate(document: dict[str, Any], folder: Path) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, if its fields are valid, and every problem of the fields and between them."""
    recipe, problems = None, []
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        problems = [_problem(dict(detail)) for detail in error.errors(include_url=False)]
    sections = SimpleNamespace(**{name: _section(name, document) for name in Recipe.model_fields})
    findings = impossible_combinations(sections, folder)
    problems += [Problem(finding.path, 0, finding.message, finding.remedy) for finding in findings]
    return recipe, problems


def _section(name: str, document: dict[str, Any]) -> Any:
    """One section by itself, so that a mistake in another does not hide what is wrong with how this one is used."""
    field = Recipe.model_fields[name]
    if name not in document:
        return field.get_default()
    if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
        return document[name]
    try:
        return field.annotation.model_validate(document[name])
    except ValidationError:
        return None


def _problem(detail: dict[str, Any]) -> Problem:
    path: KeyPath = detail["loc"]
    value, kind = detail["input"], detail["type"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(path, 0, "unknown key", _did_you_mean(path))
    if kind == "missing" and isinstance(path[-1], int):
        return Problem(path[:-1], 0, "this list is too short", f"write at least {path[-1] + 1} values")
    if kind == "missing":
        return Problem(path, 0, "this key is missing", f"write {_example(path)}")
    if kind == "literal_error":
        return Problem(path, 0, f"{value!r} is not among the choices", f"choose {context['expected']}")
    if kind == "string_pattern_mismatch":
        return Problem(path, 0, f"{value!r} is not allowed here", _FORMS.get(path[-1], f"write {context['pattern']}"))
    message = str(detail["msg"])
    message = message.removeprefix("Input should be ").removeprefix("Value should have ")
    message = {"model_type": "a table", "model_attributes_type": "a table", "tuple_type": "a list"}.get(kind, message)
    shown = value if isinstance(value, str | int | float | bool | list) else type(value).__name__
    return Problem(path, 0, f"{shown!r} should be {message}", "")


_FORMS: dict[str | int, str] = {
    "name": "write lower-case letters, digits, '.', '_' and '-', at most 64",
    "weights": "write the name of a .safetensors file",
    "set": "write 'mnist', 'fashion-mnist', 'cifar10', 'gtsrb', 'npz:FILE' or 'folder:DIR'",
}
_EXAMPLES: dict[KeyPath, str] = {
    ("name",): 'name = "my-network"',
    ("network", "architecture"): 'architecture = "lenet"',
    ("data", "set"): 'set = "fashion-mnist"',
    ("training", "phases"): "at least one [[training.phases]]",
    ("threat_model", "eps_255"): "the radius in grey levels, such as eps_255 = 8.0",
}


def _example(path: KeyPath) -> str:
    return _EXAMPLES.get(path, f"{path[-1]} = ...")


def _did_you_mean(path: KeyPath) -> str:
    known = _known_keys(path[:-1])
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"


def _known_keys(path: KeyPath) -> list[str]:
    """The keys of the table at `path`, from the models."""
    model: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, str):
            model = next(_models_in(model.model_fields[part].annotation))
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _line(path: KeyPath, lines: dict[KeyPath, int]) -> int:
    """The line of the key, or of the nearest table around it that the text has."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 0
