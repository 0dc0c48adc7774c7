"""Values that are each allowed and cannot stand together. Every rule is one small function that yields problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from hardbit.data import image_shape
from hardbit.recipe.defaults import DATA_SETS, NETWORK_OPTIONS
from hardbit.recipe.schema import Phase
from hardbit.recipe.toml_text import KeyPath
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.gate import parse_gate

__all__ = ["TARGETS_OF_PROFILE", "Finding", "impossible_combinations"]

TARGETS_OF_PROFILE = {"onnxruntime": ("onnxruntime",)}
"""Numerics profiles, and the targets whose arithmetic each describes."""


@dataclass(frozen=True)
class Finding:
    """A key, what is wrong with its value next to the others, and what to write instead."""

    path: KeyPath
    message: str
    remedy: str


def impossible_combinations(sections: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    """Everything wrong between the values of a recipe.

    `sections` has an attribute for each section, None where the section itself is invalid: rules that need it pass.
    """
    for rule in _RULES:
        yield from rule(sections, folder)


def _network_options(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.network is None:
        return
    own = NETWORK_OPTIONS[s.network.architecture]
    foreign = {key for options in NETWORK_OPTIONS.values() for key in options} - set(own)
    for key in sorted(foreign & set(s.network.options())):
        yield Finding(("network", key), f"{s.network.architecture} has no '{key}'", f"its options are {', '.join(own)}")


def _network_fits_data(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.network is None or s.data is None:
        return
    evaluation = s.data.evaluation.file
    sources: list[tuple[KeyPath, str, str]] = [(("data", "set"), s.data.set, "train")]
    if evaluation is not None:
        sources.append((("data", "evaluation", "file"), f"npz:{evaluation}", "test"))
    for path, source, split in sources:
        if source.startswith("npz:") and not (folder / source[4:]).is_file():
            if path == ("data", "evaluation", "file"):
                yield Finding(path, f"there is no file {folder / source[4:]}", "make it with hardbit.data.extract")
            continue  # a set to train on is not needed where weights are shipped
        try:
            shape = image_shape(source if source[:4] != "npz:" else f"npz:{folder / source[4:]}", split)
        except HardbitError as error:
            yield Finding(path, str(error), "")
            continue
        if shape != s.network.input_shape:
            yield Finding(
                ("network", "input_shape"),
                f"{s.network.architecture} takes images of {list(s.network.input_shape)}, {source} has {list(shape)}",
                f"write input_shape = {list(shape)} or choose another network",
            )
    known = DATA_SETS.get(s.data.set)
    if known and s.network.classes != known["classes"]:
        yield Finding(
            ("network", "classes"),
            f"the network tells {s.network.classes} classes apart, {s.data.set} has {known['classes']}",
            f"write classes = {known['classes']}",
        )


def _profile(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.quantization is None:
        return
    profile = s.quantization.profile
    if profile not in TARGETS_OF_PROFILE:
        known = ", ".join(sorted(TARGETS_OF_PROFILE))
        yield Finding(("quantization", "profile"), f"there is no profile '{profile}'", f"known: {known}")
    elif s.target is not None and s.target.name not in TARGETS_OF_PROFILE[profile]:
        serving = sorted(name for name, targets in TARGETS_OF_PROFILE.items() if s.target.name in targets)
        yield Finding(
            ("quantization", "profile"),
            f"profile '{profile}' does not describe the arithmetic of target '{s.target.name}'",
            f"for this target write profile = {' or '.join(map(repr, serving))}",
        )


def _threat_model(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.threat_model is None:
        return
    norm, eps, path = s.threat_model.norm, s.threat_model.eps_255, ("threat_model", "eps_255")
    if norm == "linf" and eps != int(eps):
        yield Finding(
            path,
            f"an L-inf radius of {eps} grey levels does not lie on the grid of bytes: {int(eps)} is all it allows",
            f"write eps_255 = {float(max(1, int(eps)))}",
        )
    yield from _radius(path, norm, eps, s)


def _phase_radii(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.threat_model is None:
        return
    for path, phase in _phases(s):
        if phase.eps_255 != s.threat_model.eps_255:  # else the threat model is the place to say it
            yield from _radius((*path, "eps_255"), s.threat_model.norm, phase.eps_255, s)


def _radius(path: KeyPath, norm: str, eps: float, s: SimpleNamespace) -> Iterator[Finding]:
    pixels = math.prod(s.network.input_shape) if s.network is not None else math.inf
    largest = 255.0 if norm == "linf" else 255.0 * math.sqrt(pixels)
    if eps > largest:
        yield Finding(
            path,
            f"a radius of {eps} grey levels in {norm} is larger than the whole space of images ({largest:.0f})",
            "radii are in grey levels of 255: 8/255 is written 8.0",
        )


def _adversaries(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    for path, phase in _phases(s):
        if phase.adversary == "none":
            for key in ("steps", "step_size_255", "eps_255", "random_start"):
                if getattr(phase, key):
                    yield Finding((*path, key), "without an adversary nothing is perturbed", f"remove {key}")
            continue
        if phase.adversary in ("fgsm", "n-fgsm") and phase.steps != 1:
            yield Finding(
                (*path, "steps"),
                f"{phase.adversary} takes one step, not {phase.steps}",
                "remove steps, or write adversary = 'pgd'",
            )
        if phase.adversary == "pgd" and phase.steps < 1:
            yield Finding((*path, "steps"), "pgd takes at least one step", "write steps = 7, or adversary = 'none'")
        if phase.adversary == "n-fgsm" and not phase.random_start:
            yield Finding(
                (*path, "random_start"),
                "n-fgsm is its random start",
                "remove random_start, or write adversary = 'fgsm'",
            )
        if phase.adversary == "n-fgsm" and s.threat_model is not None and s.threat_model.norm == "l2":
            yield Finding(
                (*path, "adversary"),
                "n-fgsm is defined for norm 'linf' only, the threat model says 'l2'",
                "write adversary = 'pgd'",
            )
        for key in ("eps_255", "step_size_255"):
            if getattr(phase, key) == 0:
                yield Finding((*path, key), "this adversary cannot move", "write a radius, or adversary = 'none'")


def _frozen_stays_frozen(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.training is not None and not s.training.phases:
        yield Finding(("training", "phases"), "there is no phase to train in", "write at least one [[training.phases]]")
    frozen_before: int | None = None
    for path, phase in _phases(s):
        if phase.frozen:
            frozen_before = int(path[-1]) if frozen_before is None else frozen_before
        elif frozen_before is not None:
            yield Finding(
                (*path, "frozen"),
                f"phase {frozen_before + 1} is frozen, so BatchNorm is folded and this phase cannot train it",
                "write frozen = true here, or move this phase before it",
            )


def _suite(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.suite is None:
        return
    if not s.suite.losses:
        yield Finding(("suite", "losses"), "an attack needs a loss", 'write losses = ["cross_entropy", "margin"]')
    if len(set(s.suite.losses)) < len(s.suite.losses):
        yield Finding(("suite", "losses"), "a loss is named twice", "more restarts are asked for by restarts")


def _gate(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.gate is None:
        return
    clean, robust, latency = s.gate.clean, s.gate.robust, s.gate.latency
    if clean and robust and robust.reference > clean.reference:
        yield Finding(
            ("gate", "robust", "reference"),
            f"a robust rate of {robust.reference} is above the clean rate of {clean.reference}: an image that survives "
            "every attack is classified correctly without one",
            "lower it, or raise gate.clean.reference",
        )
    limits = [(key, getattr(latency, key)) for key in ("max_p50_ms", "max_p90_ms", "max_p99_ms")] if latency else []
    try:
        parse_gate(s.gate.document())
    except HardbitError as error:  # the rules of the harness itself, which will read this gate
        yield Finding(tuple(error.where.split(".")), error.message, error.remedy)
    limits = [(key, limit) for key, limit in limits if limit is not None]
    for (lower_key, lower), (key, limit) in pairwise(limits):
        if limit < lower:
            yield Finding(("gate", "latency", key), f"{limit} is below {lower_key} = {lower}", f"raise {key}")


def _phases(s: SimpleNamespace) -> Iterator[tuple[KeyPath, Phase]]:
    for number, phase in enumerate(s.training.phases if s.training is not None else ()):
        yield ("training", "phases", number), phase


_RULES: tuple[Callable[[SimpleNamespace, Path], Iterator[Finding]], ...] = (
    _network_options,
    _network_fits_data,
    _profile,
    _adversaries,
    _phase_radii,
    _frozen_stays_frozen,
    _threat_model,
    _suite,
    _gate,
)
