"""What training is asked to do, as plain values. A recipe is one way to write it down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from hardbit_deploy.errors import HardbitError

__all__ = ["Adversary", "Phase", "TrainingPlan", "learning_rate_at"]

_KINDS = ("none", "fgsm", "n-fgsm", "pgd")
_NORMS = ("linf", "l2")
_SCHEDULES = ("one-cycle", "cosine", "constant")
_OPTIMIZERS = ("adam", "sgd")
_AUGMENTATIONS = ("flip", "crop")


@dataclass(frozen=True)
class Adversary:
    """The inner maximisation. `eps_255` and `step_size_255` are in grey levels.

    kind "none" trains on clean images; "fgsm" is FGSM with a random start in the ball (Wong et al. 2020); "n-fgsm" adds
    uniform noise of twice eps and does not clip to the ball (de Jorge et al. 2022); "pgd" (Madry et al. 2018).
    """

    kind: str
    eps_255: float
    steps: int = 1
    step_size_255: float | None = None
    norm: str = "linf"
    random_start: bool = True

    def __post_init__(self) -> None:
        _check_known("adversary", self.kind, _KINDS)
        _check_known("norm", self.norm, _NORMS)

    @property
    def step_255(self) -> float:
        """The step size used: as given, or 1.25 eps (fgsm), eps (n-fgsm), 2.5 eps / steps but at most eps (pgd)."""
        if self.step_size_255 is not None:
            return self.step_size_255
        if self.kind == "fgsm":
            return 1.25 * self.eps_255
        if self.kind == "n-fgsm":
            return self.eps_255
        return min(2.5 * self.eps_255 / self.steps, self.eps_255)


@dataclass(frozen=True)
class Phase:
    """Some epochs under one adversary and one schedule. A `frozen` phase trains the network as the engine computes it:
    BatchNorm folded, scales fixed, biases on their integer grid."""

    epochs: int
    adversary: Adversary
    learning_rate: float = 2e-3
    schedule: str = "one-cycle"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    frozen: bool = False
    ema: float = 0.0
    eps_warmup: int = 0

    def __post_init__(self) -> None:
        _check_known("schedule", self.schedule, _SCHEDULES)
        _check_known("optimizer", self.optimizer, _OPTIMIZERS)


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that determines the weights, next to network, bits and data."""

    phases: tuple[Phase, ...]
    seed: int = 0
    threads: int = 1
    batch_size: int = 128
    augmentation: tuple[str, ...] = field(default=())
    inner_precision: str = "float32"
    outer_precision: str = "float32"

    def __post_init__(self) -> None:
        for kind in self.augmentation:
            _check_known("augmentation", kind, _AUGMENTATIONS)
        thawed = [n for n, (a, b) in enumerate(pairwise(self.phases), start=2) if a.frozen and not b.frozen]
        if thawed or not self.phases:
            raise HardbitError(
                "a frozen phase cannot be followed by one that is not" if thawed else "there is no phase",
                where=f"training, phase {thawed[0] if thawed else 1}",
                remedy="BatchNorm that is folded stays folded: freeze the later phases too" if thawed else "",
            )

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def phase_of(self, epoch: int) -> tuple[Phase, int]:
        """The phase that `epoch` (from 0) belongs to, and the epoch's number within it."""
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase, epoch
            epoch -= phase.epochs
        raise IndexError("there are not so many epochs in the plan")


def learning_rate_at(phase: Phase, step: int, steps: int) -> float:
    """Learning rate at `step` of `steps` in the phase.

    one-cycle: linear to the peak over the first quarter, then a half cosine to zero (Smith & Topin 2019); cosine: the
    half cosine alone; constant.
    """
    if phase.schedule == "constant":
        return phase.learning_rate
    position = step / max(1, steps)
    if phase.schedule == "one-cycle":
        if position < 0.25:
            return phase.learning_rate * (0.04 + 0.96 * position / 0.25)
        position = (position - 0.25) / 0.75
    return phase.learning_rate * 0.5 * (1 + math.cos(math.pi * position))


def _check_known(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise HardbitError(f"there is no {what} '{word}'", where="training", remedy=f"known: {', '.join(known)}")
