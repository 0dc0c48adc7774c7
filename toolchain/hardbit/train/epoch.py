"""One epoch: a pass over the data in an order drawn from (seed, epoch), from its beginning or from any step of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbit.train.adversary import centred, draw_noise
from hardbit.train.augmentation import augment
from hardbit.train.checkpoint import Checkpoint
from hardbit.train.distributed import World
from hardbit.train.network import Trainee
from hardbit.train.plan import Phase, TrainingPlan
from hardbit.train.schedules import adversary_at, learning_rate_at
from hardbit.train.step import Update
from hardbit_deploy.errors import HardbitError

__all__ = ["EpochUnderWay", "run_epoch"]


@dataclass
class EpochUnderWay:
    """An epoch (from 0) after `step` of its `steps`: its order, its generator, and the sums that its record is made of.

    The generator is one of the data's device and serves augmentation and noise; what a network draws itself, such as
    in Dropout, comes from PyTorch's global one.
    """

    epoch: int
    steps: int
    order: Tensor
    generator: torch.Generator
    step: int = 0
    loss: float = 0.0
    correct: float = 0.0
    seen: float = 0.0
    seconds: float = 0.0
    last_loss: float = 0.0
    learning_rate: float = 0.0

    @classmethod
    def begin(cls, epoch: int, plan: TrainingPlan, data: tuple[Tensor, Tensor]) -> EpochUnderWay:
        """The epoch before its first step."""
        images = data[0]
        seed = (plan.seed + 1) * 1_000_003 + epoch
        torch.manual_seed(seed)
        generator = torch.Generator(images.device).manual_seed(seed)
        order = torch.randperm(len(images), generator=generator, device=images.device)
        return cls(epoch, max(1, len(order) // plan.batch_size), order, generator)

    @classmethod
    def resume(cls, saved: Checkpoint, plan: TrainingPlan, data: tuple[Tensor, Tensor]) -> EpochUnderWay:
        """The epoch as it was when the checkpoint was written.

        Raises HardbitError on another kind of device: its generators draw other numbers.
        """
        now = cls.begin(saved.epoch, plan, data)
        began = "cuda" if "cuda" in saved.random else "cpu"
        if now.order.device.type != began:
            raise HardbitError(
                f"the checkpoint lies within an epoch that began on device '{began}'",
                where="training.device",
                remedy=f"say device = '{began}', or delete the checkpoint",
            )
        now.step = saved.step
        for name, value in saved.sums.items():
            setattr(now, name, value)
        now.generator.set_state(saved.random["epoch"])
        torch.set_rng_state(saved.random["global"])
        if "cuda" in saved.random:
            torch.cuda.set_rng_state(saved.random["cuda"], now.order.device)
        return now

    def sums(self) -> dict[str, float]:
        """What a checkpoint keeps of the epoch so far, next to the number of steps."""
        return {name: getattr(self, name) for name in ("loss", "correct", "seen", "seconds", "learning_rate")}

    def random_states(self) -> dict[str, Tensor]:
        """The states of all generators that the rest of the epoch draws from."""
        states = {"epoch": self.generator.get_state(), "global": torch.get_rng_state()}
        if self.order.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.order.device)
        return states

    def record(self, phase: Phase) -> dict[str, Any]:
        """What the history keeps of the epoch when it is over; the learning rate is that of its last step."""
        return {
            "epoch": self.epoch + 1,
            "adversary": phase.adversary.kind,
            "adversarial_accuracy": self.correct / self.seen,
            "loss": self.loss / self.steps,
            "seconds": round(self.seconds, 1),
            "learning_rate": self.learning_rate,
            "eps_255": phase.adversary.eps_255,
        }


def run_epoch(
    trainee: Trainee,
    now: EpochUnderWay,
    data: tuple[Tensor, Tensor],
    world: World,
    step_done: Callable[[EpochUnderWay], None],
) -> None:
    """Train through the steps of the epoch that are left; `step_done` is called after each."""
    plan, images, labels = trainee.plan, *data
    number, within = plan.phase_of(now.epoch)
    phase = plan.phases[number]
    trainee.module.train()
    update = Update(trainee, phase, world)
    while now.step < now.steps:
        started = time.perf_counter()
        index = now.order[now.step * plan.batch_size : (now.step + 1) * plan.batch_size]
        pixels = centred(augment(images[index], plan.augmentation, now.generator))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        step = within * now.steps + now.step
        adversary = adversary_at(phase, step, now.steps)
        noise = draw_noise(pixels, adversary, now.generator)
        now.learning_rate = learning_rate_at(phase, step, phase.epochs * now.steps)
        mine = world.share(labels[index])
        outcome = update(
            world.share(pixels),
            mine,
            batch=len(index),
            step=step,
            adversary=adversary,
            noise=tuple(map(world.share, noise)),
            learning_rate=now.learning_rate,
        )
        now.last_loss = world.total(outcome.loss * (len(mine) / len(index)))
        if not np.isfinite(now.last_loss):
            raise HardbitError(
                f"the loss is {now.last_loss} in epoch {now.epoch + 1}, step {now.step + 1}",
                where="training",
                remedy="lower the learning rate; the last checkpoint is untouched",
            )
        now.step += 1
        now.loss += now.last_loss
        now.correct += world.total(outcome.correct)
        now.seen += len(index)
        now.seconds += time.perf_counter() - started
        step_done(now)
