"""One update: the inner maximisation on a shadow of the network, then the outer minimisation on the network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hardbit.train import losses
from hardbit.train.adversary import perturb
from hardbit.train.distributed import World
from hardbit.train.fused import supports_bfloat16
from hardbit.train.network import Trainee
from hardbit.train.plan import Adversary, Phase, TrainingPlan
from hardbit.train.shadow import Shadow
from hardbit.train.training_form import TrainingForm

__all__ = ["Outcome", "Update", "inner_precision"]


def inner_precision(plan: TrainingPlan, device: torch.device) -> str:
    """The precision that the adversary computes in on this device."""
    if plan.inner_precision == "auto":
        return "bfloat16" if supports_bfloat16(device) else "float32"
    return plan.inner_precision


@dataclass(frozen=True)
class Outcome:
    """What an update saw: the loss (a mean over the batch) and how many adversarial images were classified right."""

    loss: float
    correct: int


class Update:
    """Updates of `trainee` within one phase. The shadows follow the network's weights before each use.

    A loss of clean and adversarial predictions takes them in two passes, so BatchNorm normalises each by its own kind
    and its running statistics see both, as in the authors' code of TRADES.
    """

    def __init__(self, trainee: Trainee, phase: Phase, world: World) -> None:
        plan = trainee.plan
        precision = inner_precision(plan, trainee.device)
        self.trainee, self.phase, self.world = trainee, phase, world
        self.shadows = [
            Shadow(
                trainee.module, batch_norm=plan.inner_batch_norm, precision=precision, surrogate=surrogate, world=world
            )
            for surrogate in phase.adversary.surrogates
        ]
        self.form = TrainingForm(trainee.module, precision=plan.outer_precision, separate_norms=world.size > 1)
        self.teacher: Callable[[Tensor], Tensor] | None = None
        if phase.loss == "distillation" and plan.teacher is not None:
            network = plan.teacher.network.to(trainee.device)
            self.teacher = Shadow(network, batch_norm="running", precision=precision)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch: int,
        step: int,
        adversary: Adversary,
        noise: tuple[Tensor, ...],
        learning_rate: float,
    ) -> Outcome:
        """One update on this process's rows of a batch of `batch` rows: `images` centred float32 (n, channels, height,
        width), `labels` int64 (n,), `noise` as `draw_noise` gives it."""
        soft = self._soft_labels(images)
        shadow = self.shadows[step % len(self.shadows)]
        shadow.refresh()
        target = F.softmax(soft, 1) if soft is not None and adversary.kind == "trades" else labels
        adversarial = perturb(shadow, images, target, adversary, noise=noise)
        loss, logits = self._loss(images, adversarial, labels, soft)
        self._descend(self.world.part_of_mean(loss, len(images), batch), learning_rate)
        return Outcome(float(loss.detach()), int((logits.detach().argmax(1) == labels).sum()))

    def _soft_labels(self, images: Tensor) -> Tensor | None:
        """The teacher's logits for the clean images."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            return self.teacher(images)

    def _loss(self, images: Tensor, adversarial: Tensor, labels: Tensor, soft: Tensor | None) -> tuple[Tensor, Tensor]:
        """The phase's loss, and the logits of the adversarial images."""
        if self.phase.loss == "cross_entropy":
            logits = self._logits(adversarial)
            return losses.cross_entropy(logits, labels), logits
        clean = self._logits(images)
        logits = self._logits(adversarial)
        if soft is not None:
            return losses.distillation(clean, logits, soft), logits
        return losses.trades(clean, logits, labels, self.phase.beta), logits

    def _logits(self, images: Tensor) -> Tensor:
        """Of the network in training mode, BatchNorm over the images of all processes."""
        with self.world.synchronised(self.trainee.module):
            return self.form(images)

    def _descend(self, loss: Tensor, learning_rate: float) -> None:
        trainee = self.trainee
        optimizer = trainee.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad()
        loss.backward()
        self.world.sum_gradients(trainee.module)
        optimizer.step()
        if trainee.average:
            trainee.average.update(trainee.module)
