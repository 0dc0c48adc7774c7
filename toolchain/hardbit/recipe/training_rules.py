"""Values of [training] that cannot stand together, or not next to the other sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

from hardbit.recipe.finding import Finding
from hardbit.recipe.schema import Phase
from hardbit.recipe.toml_text import KeyPath

__all__ = ["TRAINING_RULES", "numbered_phases"]

_ONE_STEP = ("fgsm", "n-fgsm")
_L_INF_ONLY = ("n-fgsm", "square")
_STARTS = {
    "n-fgsm": "n-fgsm is its random start",
    "trades": "the divergence that trades climbs is flat at the image itself",
    "square": "square starts from random stripes",
}


def numbered_phases(s: SimpleNamespace) -> Iterator[tuple[KeyPath, Phase]]:
    """Every phase with the path of its table; none where the section is invalid."""
    for number, phase in enumerate(s.training.phases if s.training is not None else ()):
        yield ("training", "phases", number), phase


def _adversaries(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    for path, phase in numbered_phases(s):
        if phase.adversary == "none":
            yield from _unattacked(path, phase)
        else:
            yield from _attack(path, phase, s.threat_model.norm if s.threat_model is not None else "linf")


def _unattacked(path: KeyPath, phase: Phase) -> Iterator[Finding]:
    for key in ("steps", "step_size_255", "eps_255", "random_start", "on_grid", "eps_warmup"):
        if getattr(phase, key):
            yield Finding((*path, key), "without an adversary nothing is perturbed", f"remove {key}")
    if phase.surrogate != "straight-through":
        yield Finding((*path, "surrogate"), "without an adversary nothing is perturbed", "remove surrogate")
    if phase.loss == "trades":
        yield Finding((*path, "loss"), "without an adversary there is no divergence", "write adversary = 'trades'")


def _attack(path: KeyPath, phase: Phase, norm: str) -> Iterator[Finding]:
    adversary = phase.adversary
    if adversary in _ONE_STEP and phase.steps != 1:
        yield Finding(
            (*path, "steps"),
            f"{adversary} takes one step, not {phase.steps}",
            "remove steps, or write adversary = 'pgd'",
        )
    if adversary not in _ONE_STEP and phase.steps < 1:
        yield Finding(
            (*path, "steps"), f"{adversary} takes at least one step", "write steps = 7, or adversary = 'none'"
        )
    if adversary in _STARTS and not phase.random_start:
        yield Finding((*path, "random_start"), _STARTS[adversary], "remove random_start, or write adversary = 'fgsm'")
    if adversary in _L_INF_ONLY and norm == "l2":
        yield Finding(
            (*path, "adversary"),
            f"{adversary} is defined for norm 'linf' only, the threat model says 'l2'",
            "write adversary = 'pgd'",
        )
    for key in ("eps_255", "step_size_255"):
        if getattr(phase, key) == 0 and (adversary, key) != ("square", "step_size_255"):
            yield Finding((*path, key), "this adversary cannot move", "write a radius, or adversary = 'none'")
    if adversary == "square" and phase.step_size_255:
        yield Finding((*path, "step_size_255"), "square changes pixels by the whole radius", "remove step_size_255")
    if adversary == "square" and phase.surrogate != "straight-through":
        yield Finding((*path, "surrogate"), "square takes no gradient", "remove surrogate")
    if phase.eps_warmup > phase.epochs:
        yield Finding(
            (*path, "eps_warmup"),
            f"the radius would still grow when the phase's {phase.epochs} epochs are over",
            f"write at most {phase.epochs}",
        )


def _losses(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    for path, phase in numbered_phases(s):
        if phase.beta is not None and phase.loss != "trades":
            yield Finding((*path, "beta"), f"loss '{phase.loss}' has no beta", "remove beta, or write loss = 'trades'")
        if phase.loss == "distillation" and s.training.teacher is None:
            yield Finding((*path, "loss"), "distillation needs a teacher", "name a trained model in training.teacher")
    taught = any(phase.loss == "distillation" for _, phase in numbered_phases(s))
    if s.training is not None and s.training.teacher is not None and not taught:
        yield Finding(("training", "teacher"), "no phase learns from it", "write loss = 'distillation' in one")


def _widths(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    """Widths fall from phase to phase, to the network's own."""
    if s.quantization is None:
        return
    for key in ("weights", "activations"):
        own, before = getattr(s.quantization, key), None
        for path, phase in numbered_phases(s):
            width = getattr(phase, key) or own
            if before is not None and width > before:
                yield Finding((*path, key), f"{key} grow from {before} to {width} bits", "let widths fall")
            before = width
        if before is not None and before != own:
            yield Finding(
                (*path, key),
                f"the last phase trains {before}-bit {key}, the network has {own}",
                f"remove {key} here, or write quantization.{key} = {before}",
            )


def _selection(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.training is not None and s.training.select == "best" and s.data is not None and not s.data.validation:
        yield Finding(
            ("training", "select"), "the best epoch is chosen on held-out images", "write data.validation = 512"
        )


def _files(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    """What training starts from decides the weights, so it has to be there even where weights are shipped."""
    if s.training is None:
        return
    start, teacher = s.training.initial_weights, s.training.teacher
    if start is not None and not (folder / start).is_file():
        yield Finding(
            ("training", "initial_weights"), f"there is no file {folder / start}", "'hardbit train --out' writes one"
        )
    if teacher is not None and not (folder / teacher / "recipe.toml").is_file():
        yield Finding(
            ("training", "teacher"),
            f"there is no {folder / teacher / 'recipe.toml'}",
            "name the folder of a model, with its recipe and weights",
        )


def _frozen_stays_frozen(s: SimpleNamespace, folder: Path) -> Iterator[Finding]:
    if s.training is not None and not s.training.phases:
        yield Finding(("training", "phases"), "there is no phase to train in", "write at least one [[training.phases]]")
    frozen_before: int | None = None
    for path, phase in numbered_phases(s):
        if phase.frozen:
            frozen_before = int(path[-1]) if frozen_before is None else frozen_before
        elif frozen_before is not None:
            yield Finding(
                (*path, "frozen"),
                f"phase {frozen_before + 1} is frozen, so BatchNorm is folded and this phase cannot train it",
                "write frozen = true here, or move this phase before it",
            )


TRAINING_RULES: tuple[Callable[[SimpleNamespace, Path], Iterator[Finding]], ...] = (
    _adversaries,
    _losses,
    _widths,
    _selection,
    _files,
    _frozen_stays_frozen,
)
