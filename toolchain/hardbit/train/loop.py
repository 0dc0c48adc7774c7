"""The training loop. All randomness of an epoch comes from (seed, epoch), so an epoch begun again is the same epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from hardbit import nets
from hardbit.quantize import Bits, calibrate, freeze, load_state, quantize
from hardbit.train.adversary import centred, perturb
from hardbit.train.augmentation import augment
from hardbit.train.averaging import WeightAverage
from hardbit.train.checkpoint import Checkpoint, load_optimizer, read_checkpoint, write_checkpoint
from hardbit.train.plan import Phase, TrainingPlan, learning_rate_at
from hardbit.train.weights import write_weights
from hardbit_deploy.errors import HardbitError

__all__ = ["Progress", "TrainingResult", "train"]

_CALIBRATION_BATCHES = 16


class Progress(Protocol):
    """Told how training goes, to show it."""

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None: ...
    def step_done(self, loss: float) -> None: ...
    def epoch_ended(self, record: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainingResult:
    """Where the weights are, the frozen network that they belong to, and one record an epoch."""

    weights: Path
    twin: fx.GraphModule
    history: list[dict[str, Any]]


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
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train by `plan` on `images` uint8 (n, channels, height, width) and `labels` int64 (n,).

    `run_dir` gets checkpoint.safetensors after every epoch and weights.safetensors at the end. A checkpoint whose
    `digest` is the same is gone on from, to the same weights bit for bit (same machine, one thread); another one is
    refused.
    """
    torch.set_num_threads(plan.threads or torch.get_num_threads())
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "checkpoint.safetensors"
    data = torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels))  # copies: PyTorch wants to write
    saved = _matching_checkpoint(path, digest)
    if saved is None:
        state = _State.begin(architecture, options, profile, bits, plan, data)
    else:
        state = _State.resume(architecture, options, profile, bits, plan, saved)
    history = list(saved.history) if saved else []
    for epoch in range(saved.epoch if saved else 0, plan.epochs):
        record = _run_epoch(state, plan, epoch, data, progress)
        history.append(record)
        write_checkpoint(
            path,
            epoch=epoch + 1,
            digest=digest,
            history=history,
            module=state.module,
            optimizer=state.optimizer,
            average=state.average,
        )
        if progress:
            progress.epoch_ended(record)
    if state.average:
        load_state(state.module, state.average.state)
    twin = (state.module if state.is_frozen else freeze(state.module)).eval()
    weights = run_dir / "weights.safetensors"
    write_weights(weights, twin, {"training_digest": digest, "history": history, **(metadata or {})})
    return TrainingResult(weights, twin, history)


@dataclass
class _State:
    module: fx.GraphModule
    optimizer: torch.optim.Optimizer
    is_frozen: bool = False
    average: WeightAverage | None = None

    @classmethod
    def begin(
        cls,
        architecture: str,
        options: Mapping[str, Any],
        profile: str,
        bits: Bits,
        plan: TrainingPlan,
        data: tuple[Tensor, Tensor],
    ) -> _State:
        """A fresh network, calibrated on clean images."""
        torch.manual_seed(plan.seed)
        module = _in_channels_last(quantize(nets.build(architecture, **options), profile, bits))
        order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(plan.seed))
        size = plan.batch_size
        whole = max(1, len(order) // size)  # as in an epoch: BatchNorm cannot normalise a last batch of one
        chosen = [order[i * size : (i + 1) * size] for i in range(min(_CALIBRATION_BATCHES, whole))]
        calibrate(module, (centred(data[0][index]) for index in chosen))
        return cls(module, _optimizer(module, plan.phases[0]))

    @classmethod
    def resume(
        cls,
        architecture: str,
        options: Mapping[str, Any],
        profile: str,
        bits: Bits,
        plan: TrainingPlan,
        saved: Checkpoint,
    ) -> _State:
        """The state after the last whole epoch."""
        phase, _ = plan.phase_of(saved.epoch - 1)
        module = _in_channels_last(quantize(nets.build(architecture, **options), profile, bits))
        if phase.frozen:
            module = freeze(module)
        load_state(module, saved.module)
        optimizer = _optimizer(module, phase)
        load_optimizer(optimizer, saved.optimizer)
        average = WeightAverage(module, phase.ema) if phase.ema else None
        if average:
            average.restore(saved.average, saved.average_updates)
        return cls(module, optimizer, is_frozen=phase.frozen, average=average)


def _run_epoch(
    state: _State, plan: TrainingPlan, epoch: int, data: tuple[Tensor, Tensor], progress: Progress | None
) -> dict[str, Any]:
    """One pass over the data in an order drawn from (seed, epoch); returns its record."""
    phase, within = plan.phase_of(epoch)
    if within == 0 and state.average:
        load_state(state.module, state.average.state)
        state.average = None
    if phase.frozen and not state.is_frozen:
        state.module, state.is_frozen = freeze(state.module.eval()), True
    if within == 0:
        state.optimizer = _optimizer(state.module, phase)
        state.average = WeightAverage(state.module, phase.ema) if phase.ema else None
    state.module.train()
    seed = (plan.seed + 1) * 1_000_003 + epoch
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # what a network's own Dropout draws from
    images, labels = data
    order = torch.randperm(len(images), generator=generator)
    steps = max(1, len(order) // plan.batch_size)
    if progress:
        progress.epoch_started(epoch, plan.epochs, steps)
    started = time.perf_counter()
    correct = seen = 0
    total_loss = 0.0
    for step in range(steps):
        index = order[step * plan.batch_size : (step + 1) * plan.batch_size]
        clean, target = augment(images[index], plan.augmentation, generator), labels[index]
        pixels = centred(clean).contiguous(memory_format=torch.channels_last)
        adversary = phase.adversary
        if phase.eps_warmup:
            ramp = min(1.0, (within * steps + step + 1) / (phase.eps_warmup * steps))
            adversary = replace(adversary, eps_255=adversary.eps_255 * ramp)
        with _autocast(plan.inner_precision):
            adversarial = perturb(state.module, pixels, target, adversary, generator)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(phase, within * steps + step, phase.epochs * steps)
        with _autocast(plan.outer_precision):
            logits = state.module(adversarial)
        loss = F.cross_entropy(logits.float(), target)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        if state.average:
            state.average.update(state.module)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise HardbitError(
                f"the loss is {value} in epoch {epoch + 1}, step {step + 1}",
                where="training",
                remedy="lower the learning rate; the last checkpoint is untouched",
            )
        total_loss += value
        correct += int((logits.argmax(1) == target).sum())
        seen += len(index)
        if progress:
            progress.step_done(value)
    return {
        "epoch": epoch + 1,
        "adversary": phase.adversary.kind,
        "adversarial_accuracy": correct / seen,
        "loss": total_loss / steps,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _in_channels_last(module: fx.GraphModule) -> fx.GraphModule:
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _optimizer(module: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """Scales in the log domain are not decayed: their zero means nothing."""
    decayed = [p for n, p in module.named_parameters() if not n.endswith("log2_scale")]
    scales = [p for n, p in module.named_parameters() if n.endswith("log2_scale")]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": phase.weight_decay}]
    if scales:
        groups.append({"params": scales, "weight_decay": 0.0})
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=phase.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.Adam(groups, lr=phase.learning_rate)


def _matching_checkpoint(path: Path, digest: str) -> Checkpoint | None:
    saved = read_checkpoint(path)
    if saved is not None and saved.digest != digest:
        raise HardbitError(
            "a checkpoint of another recipe lies here",
            where=str(path),
            remedy="delete it, or train into another folder",
        )
    return saved
