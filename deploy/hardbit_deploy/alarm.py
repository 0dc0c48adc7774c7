"""One named check on an evaluation, and what a gate may accept of it.

Boundary: a value; the rules are in `alarms` and `attack_alarms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ACCEPTABLE", "CONFIDENCE", "HALF_A_POINT", "ONE_POINT", "Alarm", "judged", "missing", "not_run"]

ACCEPTABLE = (
    "gradients",
    "iterative_beats_one_step",
    "surrogates",
    "white_box_beats_black_box",
    "white_box_beats_transfer",
    "noise_does_not_win",
    "losses",
    "eps_curve",
    "converged",
    "stronger_attacks",
)
"""Alarms that speak of how strong attacks are on a network: a gate may know of them (see `known_alarms`). The others
say that the measurement itself is broken."""

HALF_A_POINT = 0.005
ONE_POINT = 0.01
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Alarm:
    """One check: `value` against `threshold`, and why; `not_run` where there was nothing to count."""

    name: str
    status: Literal["pass", "alarm", "not_run"]
    value: float | None
    threshold: float | None
    reason: str

    def to_document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "value": self.value,
            "threshold": self.threshold,
            "reason": self.reason,
        }


def judged(name: str, raised: bool, value: float, threshold: float | None, reason: str) -> Alarm:
    """A check with something to count."""
    return Alarm(name, "alarm" if raised else "pass", float(value), threshold, reason)


def missing(name: str, threshold: float | None, reason: str) -> Alarm:
    """What should have been run and was not."""
    return Alarm(name, "alarm", None, threshold, reason)


def not_run(name: str, threshold: float | None, reason: str) -> Alarm:
    """A check with nothing to count."""
    return Alarm(name, "not_run", None, threshold, reason)
