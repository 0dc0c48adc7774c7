"""Losses on logits that come from outside, and their derivatives with respect to those logits.

Cross-entropy. Its true derivative, softmax(z) - onehot, vanishes in float32 on a confident network: with logits ten
times larger, every ninth image has no gradient at all. As (1 - p_y) (softmax of the other classes - onehot) it has a
positive factor that no sign step and no normalised step sees; without the factor the direction is right at every
scale of the logits. It is written softmax(z - 1e9 onehot) - onehot.

Margin (Carlini and Wagner 2017, arXiv:1608.04644): the greatest wrong logit minus the right one, positive when the
image is misclassified.
"""

from __future__ import annotations

from dataclasses import dataclass

from hardbit.graph.gradient.tape import Tape

__all__ = ["Losses", "weighted_losses"]

EXCLUDED = 1e9  # subtracted from the right class's logit, which leaves it out of softmax and maximum


@dataclass(frozen=True)
class Losses:
    """Names of the per-image loss, (batch,), and of its derivative by the logits, (batch, classes)."""

    loss: str
    seed: str


def weighted_losses(tape: Tape, logits: str, onehot: str, weights: str) -> Losses:
    """Weighted sum of cross-entropy and margin at `logits` (batch, classes), `weights` being (2,)."""
    axis = tape.integers([1])
    excluded = tape.emit("Sub", [logits, tape.emit("Mul", [onehot, tape.constant(EXCLUDED)])])
    right = tape.emit("ReduceSum", [tape.emit("Mul", [logits, onehot]), axis], keepdims=0)

    cross_entropy = tape.emit("Sub", [tape.emit("ReduceLogSumExp", [logits, axis], keepdims=0), right])
    cross_entropy_seed = tape.emit("Sub", [tape.emit("Softmax", [excluded], axis=1), onehot])

    margin = tape.emit("Sub", [tape.emit("ReduceMax", [excluded, axis], keepdims=0), right])
    margin_seed = tape.emit("Sub", [tape.emit("Hardmax", [excluded], axis=1), onehot])

    first, second = (tape.emit("Slice", [weights, tape.integers([k]), tape.integers([k + 1])]) for k in range(2))
    return Losses(
        loss=weighted(tape, first, cross_entropy, second, margin),
        seed=weighted(tape, first, cross_entropy_seed, second, margin_seed),
    )


def weighted(tape: Tape, first: str, one: str, second: str, other: str) -> str:
    return tape.emit("Add", [tape.emit("Mul", [one, first]), tape.emit("Mul", [other, second])])
