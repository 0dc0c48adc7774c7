"""The training digest: one SHA-256 of what decides a network's weights.

A release may add keys. A recipe that means what it meant before they were there keeps its digest, so that weights
shipped with it stay its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file

if TYPE_CHECKING:
    from hardbit.recipe.schema import Recipe

__all__ = ["sha256_of", "training_digest"]

_DECIDING = ("network", "data", "quantization", "training", "threat_model")
_DECIDING_DATA = ("set", "validation")

_LATER_KEYS: Mapping[str, Mapping[str, Any]] = {
    "quantization": {"layers": {}, "calibration": "range"},
    "training": {
        "inner_precision": "float32",
        "outer_precision": "float32",
        "inner_batch_norm": "batch",
        "initial_batch_norm": "folded",
        "select": "last",
    },
    "training.phases": {
        "ema": 0.0,
        "eps_warmup": 0,
        "loss": "cross_entropy",
        "on_grid": False,
        "surrogate": "straight-through",
    },
}
"""Keys that were added after the first release, by table, with the value that stands for what was done without them. It
need not be the key's default. Keys whose absence is a value of its own (None) need no entry."""

_INDIFFERENT: Mapping[str, tuple[str, ...]] = {"training": ("device", "checkpoint_minutes")}
"""Keys that say where and how safely, not what."""


def training_digest(recipe: Recipe) -> str:
    """SHA-256 of network, training data, quantization, training and threat model, and of the files that training
    starts from: what they hold, not where they lie. Raises HardbitError where such a file is missing."""
    document = {section: recipe.document()[section] for section in _DECIDING}
    document["data"] = {key: value for key, value in document["data"].items() if key in _DECIDING_DATA}
    for table, keys in _LATER_KEYS.items():
        for section in _tables(document, table):
            for key, old in keys.items():
                if key in section and section[key] == old:
                    del section[key]
    for table, indifferent in _INDIFFERENT.items():
        for section in _tables(document, table):
            for key in indifferent:
                section.pop(key, None)
    files: dict[str, Callable[[Recipe], str]] = {"initial_weights": _initial_weights, "teacher": _teacher}
    for key, digest_of in files.items():
        if key in document["training"]:
            document["training"][key] = digest_of(recipe)
    data = {f"data.{key}": value for key, value in document.pop("data").items()}
    return sha256_of(document | data)


def sha256_of(document: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _initial_weights(recipe: Recipe) -> str:
    path = recipe.initial_weights_path
    if path is None or not path.is_file():
        raise HardbitError("the weights that training starts from are missing", where=str(path))
    return sha256_file(path)


def _teacher(recipe: Recipe) -> str:
    from hardbit.recipe.load import load_recipe  # which imports this module

    teacher = load_recipe(recipe.folder / str(recipe.training.teacher))
    if not teacher.weights_path.is_file():
        raise HardbitError("the teacher has no weights", where=str(teacher.weights_path), remedy="train it first")
    return sha256_of([teacher.digest("network", "quantization"), sha256_file(teacher.weights_path)])


def _tables(document: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The table at `path`, or all of an array of tables."""
    found: Any = document
    for key in path.split("."):
        found = found[key]
    return found if isinstance(found, list) else [found]
