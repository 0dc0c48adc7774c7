"""Measured chunks added up: counts, and arrays with one entry per image, in the order of the images.

Boundary: adds; what the sums say is worded in `evidence` and judged in `judged_alarms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attack_specs import AttackSpec
from hardbit_deploy.chunk import MAX_EXAMPLES, Measurements
from hardbit_deploy.chunk_attacks import transfer_name
from hardbit_deploy.manifest import Manifest
from hardbit_deploy.suite import Suite

__all__ = ["ChunkTotals"]

_COUNTS = (
    "logits",
    "determinism",
    "feasible",
    "gradients",
    "converged",
    "converged_queries",
    "noise",
    "losses",
)


class ChunkTotals:
    """Sums over chunks; arrays only where one entry per image is kept."""

    def __init__(self) -> None:
        self.per_image: dict[str, list[NDArray[Any]]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.seconds: dict[str, float] = {}
        self.agreement: dict[str, tuple[int, int, float]] = {}
        self.curve: list[NDArray[np.bool_]] = []
        self.corruptions: list[NDArray[np.bool_]] = []
        self.examples: dict[str, list[NDArray[Any]]] = {}

    def add(self, measured: Measurements) -> None:
        for name, value in measured.items():
            kind, _, rest = name.partition("/")
            if kind == "seconds":
                self.seconds[rest] = self.seconds.get(rest, 0.0) + float(value)
            elif kind == "agreement":
                images, flips, largest = self.agreement.get(rest, (0, 0, 0.0))
                self.agreement[rest] = (images + int(value[0]), flips + int(value[1]), max(largest, float(value[2])))
            elif kind == "examples":
                self.examples.setdefault(rest, []).append(value)
            elif kind == "curve":
                self.curve.append(value)
            elif kind == "corruptions":
                self.corruptions.append(value)
            elif kind in _COUNTS:
                self.counts[name] = self.counts.get(name, np.zeros(len(value), np.int64)) + value
            else:
                self.per_image.setdefault(name, []).append(value)

    def records(self) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate(parts) for name, parts in self.per_image.items()}

    def record(self, name: str) -> NDArray[np.bool_]:
        return np.concatenate(self.per_image[name])

    def chosen_examples(self) -> dict[str, NDArray[Any]]:
        examples = {name: np.concatenate(parts) for name, parts in self.examples.items()}
        fooled = examples["adversarial_prediction"] != examples["label"]
        order = np.argsort(~fooled, kind="stable")[:MAX_EXAMPLES]
        return {name: values[order] for name, values in examples.items()}

    def further(self, suite: Suite, manifest: Manifest) -> Iterator[tuple[AttackSpec, int, int]]:
        """Every further attack with the images that it was given and those of them that fell."""
        transfers = [transfer_name(source.name) for source in manifest.transfers]
        square = [suite.square_name] if suite.square_name is not None else []
        found = [self.record(f"survived/{name}") for name in (*suite.white_box_names, *square, *transfers)]
        standing = int(np.count_nonzero(np.all([self.record("clean"), *found], axis=0)))
        for spec in suite.further:
            after = int(np.count_nonzero(self.record(f"survived/{spec.name}")))
            yield spec, standing, standing - after
            standing = after
