"""Which attacks are run, how hard, and on how many images: the settings of an evaluation, by name.

A name means the same effort for every network, and more where few bits mask gradients: see `named_suite`.

Boundary: says nothing about the threat model (norm and eps), which belongs to the model that is judged, nor about
transfer images, which lie in the bundle and are always judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hardbit_deploy.attack_specs import AttackSpec, parse_attack
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.network_bits import NetworkBits

__all__ = ["LOSSES", "SUITES", "SURROGATES", "Suite", "named_suite", "suite_from_document"]

LOSSES = ("cross_entropy", "margin")
STRAIGHT_THROUGH, SMOOTH = SURROGATES = ("straight-through", "smooth")


@dataclass(frozen=True)
class Suite:
    """FGSM, PGD with every surrogate and loss, Square, then `attacks`; an image is robust if it survives all of them.

    A surrogate is what stands for the quantizers in the backward pass: `straight-through` takes rounding for the
    identity, `smooth` leaves it out of the forward pass too. `square_queries` 0 leaves Square out. `attacks` are
    further ones, written as `attack_specs` says: they run in order, through every surrogate, on the images that still
    stand. `corruption_images` says on how many of the first images accuracy under corruptions is seen; 0 leaves it out.

    The sizes below `seed` bound the alarms: they are measured on the first so many images only, so that they cost a
    fraction of the attacks. `chunk` bounds memory and has no influence on any count.
    """

    name: str
    steps: int
    restarts: int
    losses: tuple[str, ...]
    surrogates: tuple[str, ...] = (STRAIGHT_THROUGH,)
    square_queries: int = 0
    attacks: tuple[str, ...] = ()
    corruption_images: int = 0
    seed: int = 0
    chunk: int = 256
    eps_factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    curve_images: int = 256
    gradient_images: int = 256
    determinism_images: int = 64
    convergence_images: int = 512
    query_convergence_images: int = 128
    noise_images: int = 256
    loss_images: int = 256

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
        if self.surrogates not in ((STRAIGHT_THROUGH,), SURROGATES):
            raise HardbitError(
                f"surrogates are {list(self.surrogates)!r}",
                "suite.surrogates",
                f'write ["{STRAIGHT_THROUGH}"] or ["{STRAIGHT_THROUGH}", "{SMOOTH}"]',
            )
        if any(not 0 < factor < math.inf for factor in self.eps_factors):
            raise HardbitError("an eps factor is not above zero", "suite.eps_factors", "give positive factors")
        taken = {"clean", "worst_case", *self.white_box_names}
        for name in (spec.name for spec in self.further):
            if name in taken:
                raise HardbitError(f"{name!r} is made twice", "suite.attacks", "name every attack once")
            taken.add(name)

    @property
    def climbs(self) -> tuple[tuple[str, str], ...]:
        """Surrogate and loss of every PGD, in the order in which they run."""
        return tuple((surrogate, loss) for surrogate in self.surrogates for loss in self.losses)

    @property
    def white_box_names(self) -> tuple[str, ...]:
        """The attacks that use gradients, in the order in which they run and are reported."""
        return ("fgsm", *(self.pgd_name(loss, surrogate) for surrogate, loss in self.climbs))

    @property
    def further(self) -> tuple[AttackSpec, ...]:
        """The further attacks, read."""
        return tuple(parse_attack(spec) for spec in self.attacks)

    @property
    def losses_left_out(self) -> tuple[str, ...]:
        """Of cross-entropy, margin and tempered cross-entropy, those that nothing in it ascends."""
        ascended = {*self.losses, *(spec.objective for spec in self.further)}
        ascended |= {"margin"} if "dlr" in ascended else set()  # the difference of logits, with another scale
        return tuple(loss for loss in (*LOSSES, "tempered") if loss not in ascended)

    @property
    def square_name(self) -> str | None:
        """The row of Square; None where it is not run."""
        return f"square-{self.square_queries}" if self.square_queries else None

    def pgd_name(self, loss: str, surrogate: str = STRAIGHT_THROUGH) -> str:
        return f"pgd-{self.steps} {loss}" + (f" {SMOOTH}" if surrogate == SMOOTH else "")

    def without_smooth(self, bits: NetworkBits) -> Suite:
        """What is left of it where the bundle of a network of these widths has no smooth attack graph.

        It is another suite, unless it asked for none or the network needs none: `full` uses both where there are both.
        """
        if SMOOTH not in self.surrogates:
            return self
        name = "custom" if bits.need_both_surrogates or self.name not in SUITES else self.name
        return replace(self, name=name, surrogates=(STRAIGHT_THROUGH,))

    def to_document(self) -> dict[str, Any]:
        """JSON-able settings, every one of them: what a result records and what a resumed run is keyed by."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}


_MOST = 2**63 - 1  # a seed is a key of 64 bits
_LEAST = {
    "steps": 1,
    "restarts": 1,
    "square_queries": 0,
    "corruption_images": 0,
    "seed": 0,
    "chunk": 1,
    "curve_images": 0,
    "gradient_images": 0,
    "determinism_images": 0,
    "convergence_images": 0,
    "query_convergence_images": 0,
    "noise_images": 0,
    "loss_images": 0,
}

_QUERIES = 500
SUITES: Mapping[str, Suite] = {
    "quick": Suite("quick", steps=10, restarts=1, losses=("cross_entropy",)),
    "standard": Suite(
        "standard",
        steps=20,
        restarts=3,
        losses=LOSSES,
        square_queries=_QUERIES,
        attacks=("apgd-50 cross_entropy",),
    ),
    "full": Suite(
        "full",
        steps=20,
        restarts=3,
        losses=LOSSES,
        surrogates=SURROGATES,
        square_queries=5000,
        attacks=(
            "pgd-100 tempered",
            "apgd-100 cross_entropy",
            "apgd-100 targeted-9",
            "fab-100 targeted-9",
            "spsa-40",
            "random-100",
        ),
        corruption_images=1000,
    ),
}
"""The named suites for networks of 4 bits and more: of a commit, of every day, of a release."""


def named_suite(name: str, bits: NetworkBits | None = None, **changes: Any) -> Suite:
    """The suite of that name for a network of these widths (default: of enough bits).

    Below 4 bits it uses both surrogates, and with activations of 3 bits and fewer Square too, whatever its name: what
    it finds would be void without. With `changes` of anything but the seed it is called `custom`. Raises HardbitError
    for a name that is not known.
    """
    if name not in SUITES:
        raise HardbitError(f"suite {name!r} is not known", "suite.name", f"choose one of {', '.join(SUITES)}")
    named, widths = SUITES[name], bits or NetworkBits()
    if widths.need_both_surrogates:
        named = replace(named, surrogates=SURROGATES)
    if widths.need_queries:
        named = replace(named, square_queries=max(named.square_queries, _QUERIES))
    suite = replace(named, **changes)
    return suite if replace(suite, seed=named.seed) == named else replace(suite, name="custom")


def suite_from_document(document: Mapping[str, Any], bits: NetworkBits | None = None) -> Suite:
    """The suite that a manifest declares for a network of these widths.

    It gives `name`, `steps`, `restarts`, `losses` and what else it likes; the rest is as the suite of that name says,
    so that a bundle of an earlier version is attacked by what its suite's name means here. Raises HardbitError where a
    named suite does not have the settings of its name, so that a name can be believed.
    """
    known = {field.name for field in fields(Suite)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise HardbitError(f"key {unknown[0]!r} is not known", "suite", f"known keys are {', '.join(sorted(known))}")
    missing = [key for key in ("name", "steps", "restarts", "losses") if key not in document]
    if missing:
        raise HardbitError(f"key {missing[0]!r} is missing", "suite", "add it")
    name = document["name"]
    if not isinstance(name, str) or (name not in SUITES and name != "custom"):
        raise HardbitError(f"suite {name!r} is not known", "suite.name", f"choose {', '.join(SUITES)} or custom")
    named = named_suite(name, bits) if name in SUITES else None
    settings = {**(named.to_document() if named else {}), **document}
    try:
        for key in _LISTS:
            if key in settings:
                settings[key] = tuple(settings[key])
        suite = Suite(**settings)
    except TypeError as error:
        raise HardbitError(
            f"a setting has the wrong type ({error})", "suite", "give numbers and lists of them"
        ) from None
    if named is not None and replace(suite, seed=named.seed) != named:
        raise HardbitError(f"its settings are not those of {name}", "suite", "call a changed suite custom")
    return suite


_LISTS = ("losses", "surrogates", "attacks", "eps_factors")
