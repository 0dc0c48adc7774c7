"""The training loop: epochs, what is recorded of each, and what a killed run goes on from.

All randomness of an epoch comes from (seed, epoch), so an epoch begun again is the same epoch; within an epoch the
checkpoint keeps the states of its generators.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from hardbit.quantize import Bits, freeze, load_state
from hardbit.train.adversary import centred
from hardbit.train.checkpoint import CHECKPOINT, Checkpoint, matching_checkpoint, optimizer_tensors, write_checkpoint
from hardbit.train.distributed import World
from hardbit.train.epoch import EpochUnderWay, run_epoch
from hardbit.train.monitor import Probe, is_overfitting
from hardbit.train.network import Blueprint, Trainee
from hardbit.train.plan import TrainingPlan
from hardbit.train.step import inner_precision
from hardbit.train.weights import write_weights
from hardbit_deploy.errors import HardbitError

__all__ = ["Progress", "TrainingResult", "train"]

_CALIBRATION_BATCHES = 16
_PROBE_IMAGES = 256
_HELD_OUT_IMAGES = 512


class Progress(Protocol):
    """Told how training goes, to show it."""

    def epoch_started(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Epoch `epoch` (from 0) of `epochs` goes on after `done` of its `steps`."""

    def step_done(self, loss: float) -> None: ...
    def epoch_ended(self, record: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainingResult:
    """Where the weights are, the frozen network that they belong to, one record an epoch, and the epoch (from 1) whose
    weights these are."""

    weights: Path
    twin: fx.GraphModule
    history: list[dict[str, Any]]
    epoch: int


def train(
    architecture: str,
    options: Mapping[str, Any],
    profile: str,
    bits: Bits,
    plan: TrainingPlan,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    run_dir: Path,
    *,
    digest: str,
    held_out: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    world: World | None = None,
) -> TrainingResult:
    """Train by `plan` on `images` uint8 (n, channels, height, width) and `labels` int64 (n,).

    `held_out` images are never trained on: robustness is measured on 512 of them after every epoch (on 256 training
    images where there are none), and the plan's selection "best" goes by them. `run_dir` gets checkpoint.safetensors
    after every epoch and between, weights.safetensors at the end. A checkpoint whose `digest` is the same is gone on
    from, to the same weights bit for bit (same machine, one thread); another one is refused. In a `world` of several
    processes (torchrun's by default) all train together, and the first writes and reports.
    """
    torch.set_num_threads(plan.threads or torch.get_num_threads())
    world = world if world is not None else World.from_environment(plan.device)
    training = _Training(Blueprint(architecture, options, profile, bits), plan, (images, labels), held_out, world)
    training.run(run_dir, digest, progress if world.is_leader else None)
    return training.finish(run_dir / "weights.safetensors", {"training_digest": digest, **(metadata or {})})


class _Training:
    """A training under way: the data on its device, the network, and the record so far."""

    trainee: Trainee

    def __init__(
        self,
        blueprint: Blueprint,
        plan: TrainingPlan,
        data: tuple[NDArray[np.uint8], NDArray[np.int64]],
        held_out: tuple[NDArray[np.uint8], NDArray[np.int64]] | None,
        world: World,
    ) -> None:
        if plan.select == "best" and (held_out is None or plan.probe is None):
            raise HardbitError(
                "the best epoch is chosen on held-out images under attack, and there are none",
                where="training",
                remedy="hold images out, or take the last epoch",
            )
        self.blueprint, self.plan, self.world = blueprint, plan, world
        self.data = _on_device(data, world.device)
        self.probe = self._probe(held_out)
        self.history: list[dict[str, Any]] = []
        self.best: Mapping[str, Tensor] = {}
        self.best_epoch = 0

    def run(self, run_dir: Path, digest: str, progress: Progress | None) -> None:
        """Every epoch that is left, a checkpoint after each and, where the plan says so, within."""
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / CHECKPOINT
        saved = matching_checkpoint(path, digest)
        under_way = self._restore(saved)
        saved_at = time.monotonic()

        def save(epoch: int, now: EpochUnderWay | None = None) -> None:
            nonlocal saved_at
            if self.world.is_leader:
                write_checkpoint(path, self._checkpoint(digest, epoch, now))
            saved_at = time.monotonic()

        def step_done(now: EpochUnderWay) -> None:
            if progress:
                progress.step_done(now.last_loss)
            minutes = self.plan.checkpoint_minutes
            if minutes and time.monotonic() - saved_at > 60 * minutes and now.step < now.steps:
                save(now.epoch, now)

        for epoch in range(saved.epoch if saved else 0, self.plan.epochs):
            number, within = self.plan.phase_of(epoch)
            if within == 0 and under_way is None:
                self.trainee.enter(self.plan.phases[number])
                self.world.copy_from_leader(self.trainee.module)
            now = under_way or EpochUnderWay.begin(epoch, self.plan, self.data)
            if progress:
                progress.epoch_started(epoch, self.plan.epochs, now.steps, now.step)
            run_epoch(self.trainee, now, self.data, self.world, step_done)
            under_way = None
            self._record(now)
            save(epoch + 1)
            if progress:
                progress.epoch_ended(self.history[-1])
        self.world.barrier()

    def finish(self, path: Path, metadata: Mapping[str, Any]) -> TrainingResult:
        """Freeze the network of the chosen epoch and write its weights."""
        trainee = self.trainee
        module = trainee.delivered()
        if self.best_epoch:
            load_state(module, self.best)
        twin = (module if trainee.is_frozen else freeze(module)).cpu().eval()
        epoch = self.best_epoch or self.plan.epochs
        if self.world.is_leader:
            write_weights(path, twin, {**metadata, "history": self.history, "epoch": epoch})
        self.world.barrier()
        return TrainingResult(path, twin, self.history, epoch)

    def _record(self, now: EpochUnderWay) -> None:
        """Add the epoch's record to the history, and keep its network if it is the best of the last phase."""
        started = time.perf_counter()
        number, within = self.plan.phase_of(now.epoch)
        record = now.record(self.plan.phases[number])
        record["bits"] = {"weights": self.trainee.bits.weights, "activations": self.trainee.bits.activations}
        if self.probe is not None:
            network = self.trainee.delivered()
            record |= self.probe.measure(network, self.world)
            of_phase = [*self.history[len(self.history) - within :], record]
            record["overfitting"] = is_overfitting(of_phase)
            is_best = record["pgd"] > max((earlier.get("pgd", -1.0) for earlier in of_phase[:-1]), default=-1.0)
            if self.plan.select == "best" and number == len(self.plan.phases) - 1 and is_best:
                self.best, self.best_epoch = network.state_dict(), now.epoch + 1
        record["seconds"] = round(record["seconds"] + time.perf_counter() - started, 1)
        self.history.append(record)

    def _restore(self, saved: Checkpoint | None) -> EpochUnderWay | None:
        """Begin, or go back to where a checkpoint was written; returns the epoch that it lies in, if it lies in one."""
        if saved is None:
            self.trainee = Trainee.begin(self.blueprint, self.plan, self.world.device, self._calibration)
            return None
        self.trainee = Trainee.resume(self.blueprint, self.plan, self.world.device, self._calibration, saved)
        self.history = list(saved.history)
        self.best, self.best_epoch = saved.best, saved.best_epoch
        return EpochUnderWay.resume(saved, self.plan, self.data) if saved.step else None

    def _checkpoint(self, digest: str, epoch: int, now: EpochUnderWay | None) -> Checkpoint:
        trainee = self.trainee
        return Checkpoint(
            epoch,
            digest,
            self.history,
            trainee.module.state_dict(),
            optimizer_tensors(trainee.optimizer),
            average=trainee.average.state if trainee.average else {},
            average_updates=trainee.average.updates if trainee.average else 0,
            best=self.best,
            best_epoch=self.best_epoch,
            step=now.step if now else 0,
            sums=now.sums() if now else {},
            random=now.random_states() if now else {},
        )

    def _calibration(self) -> Iterator[Tensor]:
        """Clean batches drawn by the seed."""
        images, size = self.data[0], self.plan.batch_size
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.plan.seed))
        whole = max(1, len(order) // size)  # as in an epoch: BatchNorm cannot normalise a last batch of one
        for number in range(min(_CALIBRATION_BATCHES, whole)):
            yield centred(images[order[number * size : (number + 1) * size].to(images.device)])

    def _probe(self, held_out: tuple[NDArray[np.uint8], NDArray[np.int64]] | None) -> Probe | None:
        adversary = self.plan.probe
        if adversary is None:
            return None
        images, labels = self.data if held_out is None else _on_device(held_out, self.world.device)
        count = _PROBE_IMAGES if held_out is None else _HELD_OUT_IMAGES
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.plan.seed))
        chosen = order[:count].sort().values.to(images.device)  # a set may be sorted by class: not its first images
        pixels = centred(images[chosen]).contiguous(memory_format=torch.channels_last)
        precision = inner_precision(self.plan, images.device)
        return Probe(pixels, labels[chosen], adversary, self.plan.seed, precision)


def _on_device(data: tuple[NDArray[np.uint8], NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = (torch.from_numpy(np.array(part)) for part in data)  # copies: PyTorch wants to write
    return images.to(device), labels.to(device)
