"""Which other classes a targeted attack tries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.attacks.best_iterates import BestIterates
from hardbit_deploy.engines.base import Engine

__all__ = ["best_other_classes", "best_others"]


def best_other_classes(
    engine: Engine, images: NDArray[np.uint8], labels: NDArray[np.int64], count: int, best: BestIterates
) -> NDArray[np.int64]:
    """The classes with the greatest logits on images uint8 (n, channels, height, width) but for their labels.

    int64 (n, count), the greatest first, or all of the others where there are fewer than `count`. The images themselves
    are judged in passing: one that the engine gives another label needs no attack.
    """
    logits = engine.infer(images)
    best.judge(np.arange(len(images)), images, logits, labels)
    return best_others(logits, labels, count)


def best_others(logits: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The same of logits (n, classes)."""
    others = np.where(np.isnan(logits), -np.inf, logits)
    others[np.arange(len(labels)), labels] = np.nan  # which is sorted last
    order: NDArray[np.int64] = np.argsort(-others, axis=1, kind="stable")[:, : min(count, logits.shape[1] - 1)]
    return order
