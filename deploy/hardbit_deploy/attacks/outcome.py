"""What an attack hands back: the bytes it found and what the engine said of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AttackOutcome", "keeps_label", "margins"]


@dataclass(frozen=True)
class AttackOutcome:
    """One row per image, in the order given.

    `adversarial` uint8 (n, channels, height, width) is the first iterate that fooled the engine, else the one with the
    lowest margin; `survived` bool (n,) is True where the engine kept the label on every iterate; `logits` float32
    (n, classes) and `margin` float32 (n,) are the engine's on `adversarial`; `queries` int64 (n,) is how often the
    engine was asked about the image, where an attack counts that.
    """

    adversarial: NDArray[np.uint8]
    survived: NDArray[np.bool_]
    logits: NDArray[np.float32]
    margin: NDArray[np.float32]
    queries: NDArray[np.int64] | None = None


def keeps_label(
    logits: NDArray[np.float32], labels: NDArray[np.int64], margin: NDArray[np.float32] | None = None
) -> NDArray[np.bool_]:
    """Whether each row's largest logit is its label's, bool (n,); `margin` saves work where it is known.

    A row whose margin is NaN or infinite names no label and has lost it: argmax would give the place of the NaN, which
    may be the label's, and an engine that breaks down under attack would look robust.
    """
    kept: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return kept & np.isfinite(margins(logits, labels) if margin is None else margin)


def margins(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logit of the label minus the largest other logit, float32 (n,): negative where the label lost."""
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        margin: NDArray[np.float32] = logits[rows, labels] - others.max(axis=1)
    return margin
