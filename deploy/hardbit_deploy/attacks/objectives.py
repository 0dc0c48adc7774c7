"""What a white-box attack ascends, as a function of logits, and its derivative by them.

An objective is written in a form that no scale of the logits can empty. A derivative is right up to a positive factor
for each row, which no sign step and no normalised step sees; the attack graph pulls it back to the image
(`Gradient.pullback`).

| objective | value | paper |
|---|---|---|
| `CROSS_ENTROPY` | log of the odds against the label, logsumexp of the other logits minus the label's | |
| `MARGIN` | greatest other logit minus the label's | Carlini and Wagner 2017, arXiv:1608.04644 |
| `DLR` | the margin over the distance of first and third logit | Croce and Hein 2020, arXiv:2003.01690 |
| `targeted_dlr` | the same towards one class, over the first minus the mean of third and fourth | the same |
| `TEMPERED` | cross-entropy of logits scaled to a deviation of 4 | after Gupta and Ajanthan, arXiv:2003.13511 |

Cross-entropy is softplus of the log odds: both rise and fall together, but in float the first is zero on a confident
network, and its derivative vanishes with it. Gupta and Ajanthan temper a whole network by one temperature, which they
find on images; here every image has its own at every step, and it is taken for a constant, as theirs is. A deviation of
4 is about what networks trained by cross-entropy come with; a smaller one spreads the attack over too many classes (of
250 images of a small CNN in L2, 64.0 % survive it at 1, 59.6 % at 2, 56.0 % at 4, and 56.4 % at 8).

Boundary: never sees an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["CROSS_ENTROPY", "DLR", "MARGIN", "OBJECTIVES", "TEMPERED", "Objective", "logit_difference", "targeted_dlr"]


_TEMPERED_DEVIATION = 4.0


class Objective(ABC):
    """Something to ascend; all arrays have one row for each image."""

    name: str

    @abstractmethod
    def values(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values float64 (n,) at logits (n, classes), to be compared among points of one image."""

    @abstractmethod
    def seeds(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Derivatives float32 (n, classes) of the values, each row up to a positive factor."""

    def of(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Objective:
        """The objective for some of the images."""
        return self


@dataclass(frozen=True)
class _CrossEntropy(Objective):
    name: str = "cross_entropy"

    def values(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        return _log_odds_against(logits.astype(np.float64), labels)

    def seeds(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        return _softmax_of_others(logits.astype(np.float64), labels)


@dataclass(frozen=True)
class _Tempered(Objective):
    name: str = "tempered"

    def values(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        return _log_odds_against(_tempered(logits), labels)

    def seeds(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        return _softmax_of_others(_tempered(logits), labels)


@dataclass(frozen=True)
class _Margin(Objective):
    name: str = "margin"

    def values(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = _without(logits, labels).max(axis=1) - _right(logits, labels)
        return values

    def seeds(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        return logit_difference(logits, _without(logits, labels).argmax(axis=1), labels)


@dataclass(frozen=True)
class _Dlr(Objective):
    """With two classes there is no third logit: the margin itself."""

    name: str = "dlr"

    def values(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        if logits.shape[1] < 3:
            return MARGIN.values(logits, labels)
        order = _descending(logits)
        return _quotient(MARGIN.values(logits, labels), _spread(logits, order[:, 0], order[:, 2:3]))

    def seeds(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        seeds = MARGIN.seeds(logits, labels)
        if logits.shape[1] < 3:
            return seeds
        order = _descending(logits)
        return _less_spread(seeds, self.values(logits, labels), order[:, 0], order[:, 2:3])


@dataclass(frozen=True)
class _TargetedDlr(Objective):
    """With three classes the third logit stands for the mean of third and fourth; with two, the margin itself."""

    targets: NDArray[np.int64] = field(repr=False)
    name: str = "targeted_dlr"

    def values(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        difference = _right(logits, self._targets(labels)) - _right(logits, labels)
        if logits.shape[1] < 3:
            return difference
        order = _descending(logits)
        return _quotient(difference, _spread(logits, order[:, 0], order[:, 2:4]))

    def seeds(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        seeds = logit_difference(logits, self._targets(labels), labels)
        if logits.shape[1] < 3:
            return seeds
        order = _descending(logits)
        return _less_spread(seeds, self.values(logits, labels), order[:, 0], order[:, 2:4])

    def of(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> _TargetedDlr:
        return _TargetedDlr(self.targets[rows])

    def _targets(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(labels) != len(self.targets):
            raise ValueError(f"{len(labels)} images, {len(self.targets)} targets")
        return self.targets


CROSS_ENTROPY: Objective = _CrossEntropy()
MARGIN: Objective = _Margin()
DLR: Objective = _Dlr()
TEMPERED: Objective = _Tempered()
OBJECTIVES: dict[str, Objective] = {each.name: each for each in (CROSS_ENTROPY, MARGIN, DLR, TEMPERED)}


def targeted_dlr(targets: NDArray[np.int64]) -> Objective:
    """DLR towards one class for each image, int64 (n,), which must not be the label."""
    return _TargetedDlr(targets)


def _right(logits: NDArray[np.float32] | NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    right: NDArray[np.float64] = logits[np.arange(len(labels)), labels].astype(np.float64)
    return right


def _without(logits: NDArray[np.float32] | NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    others = logits.astype(np.float64)
    others[np.arange(len(labels)), labels] = -np.inf
    return others


def _log_odds_against(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    others = _without(logits, labels)
    greatest = others.max(axis=1)
    sums = np.exp(others - greatest[:, None]).sum(axis=1)
    odds: NDArray[np.float64] = greatest + np.log(sums) - _right(logits, labels)
    return odds


def _softmax_of_others(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """softmax of the other logits - onehot."""
    others = _without(logits, labels)
    seeds = np.exp(others - others.max(axis=1, keepdims=True))
    seeds /= seeds.sum(axis=1, keepdims=True)
    seeds[np.arange(len(labels)), labels] = -1
    derivative: NDArray[np.float32] = seeds.astype(np.float32)
    return derivative


def _tempered(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits with one standard deviation over the classes for all images, or none where all are equal."""
    wide = logits.astype(np.float64)
    spread = wide.std(axis=1, keepdims=True)
    wide *= _TEMPERED_DEVIATION / np.where(spread > 0, spread, 1)
    return wide


def logit_difference(
    logits: NDArray[np.float32], ahead: NDArray[np.int64], behind: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The derivative of one class's logit minus another's, float32 like `logits` (n, classes)."""
    rows = np.arange(len(logits))
    seeds = np.zeros(logits.shape, np.float32)
    seeds[rows, ahead] += 1
    seeds[rows, behind] -= 1
    return seeds


def _descending(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """The classes of the four greatest logits, or of all where there are fewer."""
    order: NDArray[np.int64] = np.argsort(-logits, axis=1, kind="stable")[:, :4]
    return order


def _spread(logits: NDArray[np.float32], first: NDArray[np.int64], later: NDArray[np.int64]) -> NDArray[np.float64]:
    """The first logit minus the mean of those of `later` (n, k)."""
    spread: NDArray[np.float64] = _right(logits, first) - np.take_along_axis(logits, later, 1).mean(axis=1, dtype=float)
    return spread


def _quotient(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zero where all of the first logits are equal."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _less_spread(
    seeds: NDArray[np.float32], quotient: NDArray[np.float64], first: NDArray[np.int64], later: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The derivative of a quotient times its denominator: that of the numerator minus the quotient times that below."""
    rows = np.arange(len(seeds))
    seeds[rows, first] -= quotient
    for column in later.T:
        seeds[rows, column] += quotient / later.shape[1]
    return seeds
