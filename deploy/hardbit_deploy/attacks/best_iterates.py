"""The best iterate of every image of a white-box attack.

Boundary: keeps what an engine said; never asks it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.outcome import AttackOutcome, keeps_label, margins

__all__ = ["BestIterates"]


class BestIterates:
    """`outcome` is updated in place: the first iterate that fooled the engine, else the one of the lowest margin."""

    def __init__(self, images: NDArray[np.uint8], classes: int) -> None:
        count = len(images)
        self.outcome = AttackOutcome(
            images.copy(),
            np.ones(count, np.bool_),
            np.zeros((count, classes), np.float32),
            np.full(count, np.inf, np.float32),
        )

    def judge(
        self,
        rows: NDArray[np.int64],
        images: NDArray[np.uint8],
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Record iterates that are better than what is known of their rows; True for those that are still standing."""
        outcome = self.outcome
        margin = margins(logits, labels)
        standing = keeps_label(logits, labels, margin)
        better = ~standing | (margin < outcome.margin[rows])
        places = rows[better]
        outcome.adversarial[places] = images[better]
        outcome.logits[places] = logits[better]
        outcome.margin[places] = margin[better]
        outcome.survived[rows[~standing]] = False
        return standing
