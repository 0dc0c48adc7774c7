"""The network under training: how it begins, what a new phase changes in it, how it is put back from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from hardbit import nets
from hardbit.quantize import (
    Bits,
    calibrate,
    freeze,
    load_state,
    quantize,
    requantize,
    start_from,
    start_with_batch_norm,
)
from hardbit.train.averaging import WeightAverage
from hardbit.train.checkpoint import Checkpoint, load_optimizer
from hardbit.train.plan import Phase, TrainingPlan

__all__ = ["Blueprint", "Trainee"]


@dataclass(frozen=True)
class Blueprint:
    """What the network is: an architecture of `hardbit.nets` with its options, a profile, and the widths to end at."""

    architecture: str
    options: Mapping[str, Any]
    profile: str
    bits: Bits

    def build(self) -> nn.Module:
        """The plain network, freshly initialised."""
        return nets.build(self.architecture, **self.options)

    def bits_in(self, phase: Phase) -> Bits:
        """The widths of a phase: its own where it names any."""
        weights, activations = phase.weights, phase.activations
        return replace(
            self.bits,
            weights=self.bits.weights if weights is None else weights,
            activations=self.bits.activations if activations is None else activations,
        )


@dataclass
class Trainee:
    """The quantized module with what belongs to training it.

    `batches` yields a few batches of centred clean images to calibrate by.
    """

    blueprint: Blueprint
    plan: TrainingPlan
    device: torch.device
    batches: Callable[[], Iterator[Tensor]]
    module: fx.GraphModule
    bits: Bits
    optimizer: torch.optim.Optimizer
    is_frozen: bool = False
    average: WeightAverage | None = None

    @classmethod
    def begin(
        cls, blueprint: Blueprint, plan: TrainingPlan, device: torch.device, batches: Callable[[], Iterator[Tensor]]
    ) -> Trainee:
        """The network of the plan's seed or initial weights, calibrated, before its first phase."""
        trainee = cls._untrained(blueprint, plan, device, batches)
        if plan.initial is not None and plan.initial.batch_norm == "restored":
            start_with_batch_norm(trainee.module, plan.initial.tensors, next(batches()))
        calibrate(trainee.module, batches())
        return trainee

    @classmethod
    def _untrained(
        cls, blueprint: Blueprint, plan: TrainingPlan, device: torch.device, batches: Callable[[], Iterator[Tensor]]
    ) -> Trainee:
        torch.manual_seed(plan.seed)
        bits = blueprint.bits_in(plan.phases[0])
        module = quantize(blueprint.build(), blueprint.profile, bits)
        restored = plan.initial is not None and plan.initial.batch_norm == "restored"
        if plan.initial is not None and not restored:
            start_from(module, plan.initial.tensors)
        module = _placed(module, device)
        return cls(blueprint, plan, device, batches, module, bits, _optimizer(module, plan.phases[0]))

    def enter(self, phase: Phase, *, is_empty: bool = False) -> None:
        """Begin a phase: from the average of the one before, at its own widths, frozen where it is frozen.

        `is_empty` makes the structure alone, for tensors that are loaded afterwards.
        """
        if self.average:
            load_state(self.module, self.average.state)
        bits = self.blueprint.bits_in(phase)
        if bits != self.bits:
            module = requantize(self.module, self.blueprint.build, self.blueprint.profile, bits)
            self.module, self.bits, self.is_frozen = _placed(module, self.device), bits, False
            if not is_empty:
                calibrate(self.module, self.batches())
        if phase.frozen and not self.is_frozen:
            self.module, self.is_frozen = freeze(self.module.eval()), True
        self.optimizer = _optimizer(self.module, phase)
        self.average = WeightAverage(self.module, phase.ema) if phase.ema else None

    @classmethod
    def resume(
        cls,
        blueprint: Blueprint,
        plan: TrainingPlan,
        device: torch.device,
        batches: Callable[[], Iterator[Tensor]],
        saved: Checkpoint,
    ) -> Trainee:
        """The network as the checkpoint left it, at the end of a phase or within one."""
        trainee = cls._untrained(blueprint, plan, device, batches)
        current, _ = plan.phase_of(saved.epoch if saved.step else saved.epoch - 1)
        for phase in plan.phases[: current + 1]:
            trainee.average = None
            trainee.enter(phase, is_empty=True)
        load_state(trainee.module, saved.module)
        load_optimizer(trainee.optimizer, saved.optimizer)
        if trainee.average:
            trainee.average.restore(saved.average, saved.average_updates)
        return trainee

    def delivered(self) -> fx.GraphModule:
        """A copy in evaluation mode of the network as it would be delivered: the average, where there is one."""
        module = copy.deepcopy(self.module)
        if self.average:
            load_state(module, self.average.state)
        return module.eval()


def _placed(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """On the device, convolution weights in channels_last."""
    module.to(device)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


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
