"""The further attacks of a suite, as they are written: `apgd-100x3 targeted-9`, read and checked.

A spec is a kind with its effort, restarts where there are several, and what is ascended where the kind leaves a choice.
It is the name of the attack's row in a result too.

Boundary: reads specs; what they ask for is run by `further_attacks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hardbit_deploy.errors import HardbitError

__all__ = ["KINDS", "AttackSpec", "parse_attack"]

TARGETED = "targeted"


@dataclass(frozen=True)
class _Kind:
    """What one kind of attack takes: the unit of its effort, its objectives, and whether it is restarted."""

    effort: str  # a key of the settings in a result
    objectives: tuple[str, ...] = ()
    restarts: bool = False
    white_box: bool = True
    norms: tuple[str, ...] = ("linf", "l2")


KINDS: Mapping[str, _Kind] = {
    "apgd": _Kind("steps", ("cross_entropy", "dlr", TARGETED), restarts=True),
    "pgd": _Kind("steps", ("tempered", "dlr"), restarts=True),
    "fab": _Kind("steps", (TARGETED,), restarts=True),
    "carlini_wagner": _Kind("steps", norms=("l2",)),
    "deepfool": _Kind("steps"),
    "spsa": _Kind("steps", white_box=False),
    "nes": _Kind("steps", white_box=False),
    "random": _Kind("points", white_box=False),
    "hopskipjump": _Kind("queries", white_box=False),
}
"""Kinds of further attacks by the word that their specs begin with."""


@dataclass(frozen=True)
class AttackSpec:
    """One further attack: `effort` counts steps, points or queries, whichever its kind is measured in."""

    name: str
    kind: str
    effort: int
    restarts: int = 1
    objective: str | None = None
    targets: int = 0

    @property
    def is_white_box(self) -> bool:
        """Whether it uses gradients."""
        return KINDS[self.kind].white_box

    def targets_of(self, classes: int) -> int:
        """How many other classes it aims at in a network of so many classes."""
        return min(self.targets, classes - 1)

    def settings(self, classes: int) -> dict[str, int | str]:
        """As a result records them."""
        settings: dict[str, int | str] = {KINDS[self.kind].effort: self.effort}
        if KINDS[self.kind].restarts:
            settings["restarts"] = self.restarts
        if self.objective is not None:
            settings["loss"] = self.objective
        if self.targets:
            settings["targets"] = self.targets_of(classes)
        return settings

    def refuse_other_norm(self, norm: str) -> None:
        """Raise HardbitError where the attack is made for another norm."""
        if norm not in KINDS[self.kind].norms:
            raise HardbitError(
                f"{self.name!r} is an attack in {' and '.join(KINDS[self.kind].norms)}, the threat model is {norm}",
                "suite.attacks",
                "leave it out",
            )


_SPEC = re.compile(
    r"(?P<kind>[a-z_]+)-(?P<effort>[1-9]\d{0,8})(?:x(?P<restarts>[1-9]\d{0,3}))?(?: (?P<objective>\S+))?"
)
_TARGETED = re.compile(rf"{TARGETED}-([1-9]\d{{0,5}})")


def parse_attack(spec: object) -> AttackSpec:
    """The attack that `spec` asks for. Raises HardbitError in one sentence that says how it is written."""
    found = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
    if found is None or found["kind"] not in KINDS:
        raise _refused(spec, f"write one of {', '.join(f'{kind}-N' for kind in KINDS)}, such as 'apgd-100 dlr'")
    kind, objective = found["kind"], found["objective"]
    rule = KINDS[kind]
    targeted = _TARGETED.fullmatch(objective or "")
    if objective == TARGETED or (TARGETED if targeted else objective) not in (rule.objectives or (None,)):
        choices = " or ".join(f"'{kind}-N {name}'" for name in _choices(rule)) or f"'{kind}-N' alone"
        raise _refused(spec, f"write {choices}")
    if found["restarts"] and not rule.restarts:
        raise _refused(spec, f"{kind} has no restarts: write '{kind}-N'")
    return AttackSpec(
        name=found.string,
        kind=kind,
        effort=int(found["effort"]),
        restarts=int(found["restarts"] or 1),
        objective=objective if targeted is None else "dlr" if kind == "apgd" else None,
        targets=int(targeted[1]) if targeted else 0,
    )


def _choices(rule: _Kind) -> list[str]:
    return [f"{TARGETED}-K" if name == TARGETED else name for name in rule.objectives]


def _refused(spec: object, remedy: str) -> HardbitError:
    return HardbitError(f"{spec!r} is no attack", "suite.attacks", remedy)
