"""What training is asked to do, as plain values. A recipe is one way to write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, fx

from hardbit_deploy.errors import HardbitError

__all__ = ["Adversary", "InitialWeights", "Phase", "Teacher", "TrainingPlan"]

_KINDS = ("none", "fgsm", "n-fgsm", "pgd", "trades", "square")
_NORMS = ("linf", "l2")
_SURROGATES = ("straight-through", "smooth", "both")
_LOSSES = ("cross_entropy", "trades", "distillation")
_SCHEDULES = ("one-cycle", "cosine", "constant")
_OPTIMIZERS = ("adam", "sgd")
_AUGMENTATIONS = ("flip", "crop")
_INNER_PRECISIONS = ("auto", "float32", "bfloat16")
_OUTER_PRECISIONS = ("float32", "bfloat16")
_BATCH_NORMS = ("batch", "running", "folded")
_DEVICES = ("auto", "cpu", "cuda")
_SELECTIONS = ("last", "best")
_PROBE_STEPS = 10


@dataclass(frozen=True)
class Adversary:
    """The inner maximisation. `eps_255` and `step_size_255` are in grey levels.

    kind "none" trains on clean images; "fgsm" is FGSM with a random start in the ball (Wong et al. 2020); "n-fgsm" adds
    uniform noise of twice eps and does not clip to the ball (de Jorge et al. 2022); "pgd" (Madry et al. 2018); "trades"
    is PGD on the divergence from the predictions for the clean image, or from those of a teacher (Zhang et al. 2019);
    "square" draws random squares and keeps what lowers the margin, without gradients (Andriushchenko et al. 2020).

    `on_grid` rounds the result to bytes inside the ball. `surrogate` is what gradients flow through where activations
    are rounded: straight through, a clipping that does not round, or both by turns from batch to batch.
    """

    kind: str
    eps_255: float
    steps: int = 1
    step_size_255: float | None = None
    norm: str = "linf"
    random_start: bool = True
    on_grid: bool = False
    surrogate: str = "straight-through"

    def __post_init__(self) -> None:
        _check_known("adversary", self.kind, _KINDS)
        _check_known("norm", self.norm, _NORMS)
        _check_known("surrogate", self.surrogate, _SURROGATES)

    @property
    def step_255(self) -> float:
        """The step size used: as given, or 1.25 eps (fgsm), eps (n-fgsm), 2.5 eps / steps but at most eps (pgd,
        trades)."""
        if self.step_size_255 is not None:
            return self.step_size_255
        if self.kind == "fgsm":
            return 1.25 * self.eps_255
        if self.kind == "n-fgsm":
            return self.eps_255
        return min(2.5 * self.eps_255 / self.steps, self.eps_255)

    @property
    def surrogates(self) -> tuple[str, ...]:
        """The surrogates that take turns, one batch each."""
        return ("straight-through", "smooth") if self.surrogate == "both" else (self.surrogate,)


@dataclass(frozen=True)
class Phase:
    """Some epochs under one adversary and one schedule.

    A `frozen` phase trains the network as the engine computes it: BatchNorm folded, scales fixed, biases on their
    integer grid. `ema` is the decay of the weight average that the phase ends with, 0 for none. `eps_warmup` epochs
    lead from no radius to the full one. `beta` weighs the divergence of loss "trades". `weights` and `activations` are
    widths in bits of this phase, those of the network where None.
    """

    epochs: int
    adversary: Adversary
    learning_rate: float = 2e-3
    schedule: str = "one-cycle"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    frozen: bool = False
    ema: float = 0.0
    eps_warmup: int = 0
    loss: str = "cross_entropy"
    beta: float = 6.0
    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        _check_known("schedule", self.schedule, _SCHEDULES)
        _check_known("optimizer", self.optimizer, _OPTIMIZERS)
        _check_known("loss", self.loss, _LOSSES)


@dataclass(frozen=True)
class InitialWeights:
    """The tensors of a frozen network that training starts from, and the SHA-256 of their file.

    BatchNorm is folded into them: it stays folded, or with `batch_norm` "restored" gets its places back.
    """

    tensors: Mapping[str, Tensor]
    digest: str
    batch_norm: str = "folded"

    def __post_init__(self) -> None:
        _check_known("initial_batch_norm", self.batch_norm, ("folded", "restored"))


@dataclass(frozen=True)
class Teacher:
    """A frozen network, and the SHA-256 of its weights."""

    network: fx.GraphModule
    digest: str


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that determines the weights, next to network, bits and data.

    `inner_precision` is that of the adversary's forward and backward passes ("auto": bfloat16 where the machine
    computes it fast), `outer_precision` that of the update. `inner_batch_norm` is what BatchNorm does for the
    adversary: normalise by the batch, by the running statistics, or by these folded into the weights. `select` "best"
    ends with the epoch of the last phase that held best under PGD on held-out images. `eps_255` and `norm` are the
    ball of that measurement; where None, that of the strongest adversary. Neither `device` nor `checkpoint_minutes`
    (how long a kill may cost; 0: an epoch) is meant to change the weights.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    threads: int = 1
    batch_size: int = 128
    augmentation: tuple[str, ...] = field(default=())
    inner_precision: str = "float32"
    outer_precision: str = "float32"
    inner_batch_norm: str = "batch"
    device: str = "cpu"
    select: str = "last"
    eps_255: float | None = None
    norm: str | None = None
    initial: InitialWeights | None = None
    teacher: Teacher | None = None
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        for kind in self.augmentation:
            _check_known("augmentation", kind, _AUGMENTATIONS)
        _check_known("inner precision", self.inner_precision, _INNER_PRECISIONS)
        _check_known("outer precision", self.outer_precision, _OUTER_PRECISIONS)
        _check_known("inner BatchNorm", self.inner_batch_norm, _BATCH_NORMS)
        _check_known("device", self.device, _DEVICES)
        _check_known("selection", self.select, _SELECTIONS)
        thawed = [n for n, (a, b) in enumerate(pairwise(self.phases), start=2) if a.frozen and not b.frozen]
        if thawed or not self.phases:
            raise HardbitError(
                "a frozen phase cannot be followed by one that is not" if thawed else "there is no phase",
                where=f"training, phase {thawed[0] if thawed else 1}",
                remedy="BatchNorm that is folded stays folded: freeze the later phases too" if thawed else "",
            )
        if self.teacher is None and any(phase.loss == "distillation" for phase in self.phases):
            raise HardbitError("distillation needs a teacher", where="training", remedy="name one, or another loss")

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def phase_of(self, epoch: int) -> tuple[int, int]:
        """The number of the phase that `epoch` belongs to, and the epoch's number within it; all from 0."""
        for number, phase in enumerate(self.phases):
            if epoch < phase.epochs:
                return number, epoch
            epoch -= phase.epochs
        raise IndexError("there are not so many epochs in the plan")

    @property
    def probe(self) -> Adversary | None:
        """The adversary that progress is measured by, the same in every epoch; None where nothing is attacked."""
        strongest = max((phase.adversary for phase in self.phases), key=lambda adversary: adversary.eps_255)
        eps_255 = strongest.eps_255 if self.eps_255 is None else self.eps_255
        norm = self.norm or strongest.norm
        return Adversary("pgd", eps_255, steps=_PROBE_STEPS, norm=norm) if eps_255 > 0 else None


def _check_known(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise HardbitError(f"there is no {what} '{word}'", where="training", remedy=f"known: {', '.join(known)}")
