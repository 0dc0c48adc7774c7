"""The best point of every image so far, and how often the engine was asked about it: the books of a black-box attack.

Boundary: keeps what an engine said; never asks it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.outcome import AttackOutcome, keeps_label, margins

__all__ = ["BestPoints"]


class BestPoints:
    """`outcome` is updated in place: the first point that fooled the engine, else the one of the lowest margin."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> None:
        count = len(images)
        self._labels = labels
        self._queries = np.zeros(count, np.int64)
        self.outcome = AttackOutcome(
            images.copy(),
            np.ones(count, np.bool_),
            np.zeros((count, classes), np.float32),
            np.full(count, np.inf, np.float32),
            queries=self._queries,
        )

    def judge(
        self, rows: NDArray[np.int64], points: NDArray[np.uint8], logits: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Note one query of a point uint8 (rows, ...) inside each row's ball; True for those that are standing."""
        margin = margins(logits, self._labels[rows])
        standing = keeps_label(logits, self._labels[rows], margin)
        better = ~standing | (margin < self.outcome.margin[rows])
        places = rows[better]
        self.outcome.adversarial[places] = points[better]
        self.outcome.logits[places] = logits[better]
        self.outcome.margin[places] = margin[better]
        self.outcome.survived[rows[~standing]] = False
        self._queries[rows] += 1
        return standing

    def count(self, rows: NDArray[np.int64], queries: int) -> None:
        """Note queries of points that are no candidates."""
        self._queries[rows] += queries
