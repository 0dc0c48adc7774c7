"""Which attacks are run, how hard, and on how many images: the settings of an evaluation, by name.

Boundary: says nothing about the threat model (norm and eps), which belongs to the model that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hardbit_deploy.errors import HardbitError

__all__ = ["LOSSES", "SUITES", "Suite", "named_suite", "suite_from_document"]

LOSSES = ("cross_entropy", "margin")


@dataclass(frozen=True)
class Suite:
    """FGSM, then PGD with every loss of `losses`; an image is robust if it survives all of them.

    The sizes below `seed` bound the alarms: they are measured on the first so many images only, so that they cost a
    fraction of the attacks. `chunk` bounds memory and has no influence on any count.
    """

    name: str
    steps: int
    restarts: int
    losses: tuple[str, ...]
    seed: int = 0
    chunk: int = 256
    eps_factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    curve_images: int = 256
    gradient_images: int = 256
    determinism_images: int = 64
    convergence_images: int = 512

    def __post_init__(self) -> None:
        for field, least in _LEAST.items():
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
                raise HardbitError(
                    f"{field} is {value!r}", f"suite.{field}", f"give a whole number of at least {least}, below 2^63"
                )
        unknown = [loss for loss in self.losses if loss not in LOSSES]
        if unknown or not self.losses or len(set(self.losses)) != len(self.losses):
            raise HardbitError(
                f"losses are {list(self.losses)!r}",
                "suite.losses",
                f"name one or both of {', '.join(LOSSES)}, once each",
            )
        if any(not 0 < factor < math.inf for factor in self.eps_factors):
            raise HardbitError("an eps factor is not above zero", "suite.eps_factors", "give positive factors")

    @property
    def attack_names(self) -> tuple[str, ...]:
        """The attacks in the order in which they run and are reported, without `clean` and `worst_case`."""
        return ("fgsm", *(self.pgd_name(loss) for loss in self.losses))

    def pgd_name(self, loss: str) -> str:
        return f"pgd-{self.steps} {loss}"

    def to_document(self) -> dict[str, Any]:
        """JSON-able settings, every one of them: what a result records and what a resumed run is keyed by."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}


_MOST = 2**63 - 1  # a seed is a key of 64 bits
_LEAST = {
    "steps": 1,
    "restarts": 1,
    "seed": 0,
    "chunk": 1,
    "curve_images": 0,
    "gradient_images": 0,
    "determinism_images": 0,
    "convergence_images": 0,
}

SUITES: Mapping[str, Suite] = {
    "quick": Suite("quick", steps=10, restarts=1, losses=("cross_entropy",)),
    "standard": Suite("standard", steps=20, restarts=3, losses=("cross_entropy", "margin")),
}


def named_suite(name: str, **changes: Any) -> Suite:
    """The suite of that name; with `changes` of anything but the seed it is called `custom`.

    Raises HardbitError for a name that is not known.
    """
    if name not in SUITES:
        raise HardbitError(f"suite {name!r} is not known", "suite.name", f"choose one of {', '.join(SUITES)}")
    suite = replace(SUITES[name], **changes)
    return suite if replace(suite, seed=SUITES[name].seed) == SUITES[name] else replace(suite, name="custom")


def suite_from_document(document: Mapping[str, Any]) -> Suite:
    """The suite that a manifest declares (`name`, `steps`, `restarts`, `losses`, `seed`, and optionally the sizes).

    Raises HardbitError where a named suite does not have the settings of its name, so that a name can be believed.
    """
    known = {field.name for field in fields(Suite)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise HardbitError(f"key {unknown[0]!r} is not known", "suite", f"known keys are {', '.join(sorted(known))}")
    missing = [key for key in ("name", "steps", "restarts", "losses") if key not in document]
    if missing:
        raise HardbitError(f"key {missing[0]!r} is missing", "suite", "add it")
    settings: dict[str, Any] = dict(document)
    if not isinstance(settings["name"], str):
        raise HardbitError(f"{settings['name']!r} is not a name", "suite.name", f"choose {', '.join(SUITES)} or custom")
    try:
        for key in ("losses", "eps_factors"):
            if key in settings:
                settings[key] = tuple(settings[key])
        suite = Suite(**settings)
    except TypeError as error:
        raise HardbitError(
            f"a setting has the wrong type ({error})", "suite", "give numbers and lists of them"
        ) from None
    if suite.name not in SUITES and suite.name != "custom":
        raise HardbitError(f"suite {suite.name!r} is not known", "suite.name", f"choose {', '.join(SUITES)} or custom")
    if suite.name in SUITES and replace(suite, seed=0) != SUITES[suite.name]:
        raise HardbitError(f"its settings are not those of {suite.name}", "suite", "call a changed suite custom")
    return suite
