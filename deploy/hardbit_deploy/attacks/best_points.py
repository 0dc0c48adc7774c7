"""The best point of every image so far, and how often the engine was asked about it: the books of a black-box attack.

Boundary: keeps what an engine said; never asks it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.attacks.outcome import AttackOutcome

__all__ = ["BestPoints"]


class BestPoints:
    """`outcome` says of every image the first point that fooled the engine, else the one of the lowest margin."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> None:
        self._labels = labels
        self._queries = np.zeros(len(images), np.int64)
        self._best = BestIterates(images, classes)

    @property
    def outcome(self) -> AttackOutcome:
        return replace(self._best.outcome, queries=self._queries)

    def judge(
        self, rows: NDArray[np.int64], points: NDArray[np.uint8], logits: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Note one query of a point uint8 (rows, ...) inside each row's ball; True for those that are standing."""
        self._queries[rows] += 1
        return self._best.judge(rows, points, logits, self._labels[rows])

    def count(self, rows: NDArray[np.int64], queries: int) -> None:
        """Note queries of points that are no candidates."""
        self._queries[rows] += queries
