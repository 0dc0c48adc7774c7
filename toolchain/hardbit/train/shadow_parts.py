"""The pieces of a shadow: frozen counterparts of the modules of a quantized network.

A part is an nn.Module of buffers that `take`s them over from its original. None has parameters, none changes when it is
called.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardbit.quantize.quantizers import activation_numerics, is_activation_quantizer, is_weight_layer
from hardbit.train.distributed import World
from hardbit.train.fused.activations import rounds_and_clips
from hardbit.train.fused.operators import fake_quantize
from hardbit.train.global_batch_norm import global_batch_norm

__all__ = ["Copy", "FrozenBatchNorm", "FrozenConv", "FrozenLinear", "FrozenQuantizer", "Part", "Policy", "part_of"]


@dataclass(frozen=True)
class Policy:
    """How a shadow computes: in `dtype`, BatchNorm by the batch (of all processes of `world`) or by running statistics,
    rounding or `smooth`."""

    dtype: torch.dtype
    batch_statistics: bool
    smooth: bool
    world: World


class Part(Protocol):
    """What stands in a shadow for one module."""

    def take(self, source: Any) -> None:
        """Take over the state of `source`."""


def part_of(source: nn.Module, policy: Policy) -> nn.Module:
    """The counterpart of `source`: its fast form, or a frozen copy where it has none."""
    if isinstance(source, nn.Conv2d):
        return FrozenConv(source, policy)
    if isinstance(source, nn.Linear):
        return FrozenLinear(policy)
    if isinstance(source, nn.BatchNorm1d | nn.BatchNorm2d):
        return FrozenBatchNorm(source, policy)
    if is_activation_quantizer(source) and rounds_and_clips(source):
        return FrozenQuantizer(source, policy)
    return Copy(source, policy)


class FrozenConv(nn.Module):
    """A convolution with its weights quantized already."""

    def __init__(self, source: nn.Conv2d, policy: Policy) -> None:
        super().__init__()
        self._dtype = policy.dtype
        self._options: Any = (source.stride, source.padding, source.dilation, source.groups)

    def take(self, source: Any) -> None:
        self.weight, self.bias = _weight_and_bias(source, self._dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.to(self._dtype), self.weight, self.bias, *self._options)


class FrozenLinear(nn.Module):
    """A linear layer with its weights quantized already."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._dtype = policy.dtype

    def take(self, source: Any) -> None:
        self.weight, self.bias = _weight_and_bias(source, self._dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self._dtype), self.weight, self.bias)


class FrozenBatchNorm(nn.Module):
    """BatchNorm that normalises by the batch or by running statistics, and keeps no account of what it saw."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, source: nn.BatchNorm1d | nn.BatchNorm2d, policy: Policy) -> None:
        super().__init__()
        self._batch_statistics = policy.batch_statistics
        self._world = policy.world
        self._eps = source.eps

    def take(self, source: Any) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(source, name)
            setattr(self, name, None if value is None else value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self._batch_statistics:
            return global_batch_norm(x, None, None, self.weight, self.bias, 0.0, self._eps, self._world)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self._eps)


class FrozenQuantizer(nn.Module):
    """An activation quantizer, with its ReLU if it has one, as one operation."""

    def __init__(self, source: Any, policy: Policy) -> None:
        super().__init__()
        self._relu = isinstance(source, qnn.QuantReLU)
        self._policy = policy

    def take(self, source: Any) -> None:
        self._numerics = activation_numerics(source)

    def forward(self, x: Tensor) -> Tensor:
        n, policy = self._numerics, self._policy
        return fake_quantize(x, n.scale, n.low, n.high, self._relu, smooth=policy.smooth, dtype=policy.dtype)


class Copy(nn.Module):
    """Any other module, copied as it is and asked for no parameter gradients."""

    def __init__(self, source: nn.Module, policy: Policy) -> None:
        super().__init__()
        self._copy = copy.deepcopy(source).requires_grad_(False).train(policy.batch_statistics)
        self._dtype = policy.dtype
        if not is_activation_quantizer(source):
            self._copy.to(policy.dtype)

    def take(self, source: nn.Module) -> None:
        for (_, mine), (_, theirs) in zip(self._copy.state_dict().items(), source.state_dict().items(), strict=True):
            mine.copy_(theirs)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self._copy(*arguments, **options)


def _weight_and_bias(source: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weights as the layer multiplies by them: dequantized codes where it has quantizers."""
    weight, bias = source.weight, source.bias
    if is_weight_layer(source):
        weight, bias = source.quant_weight(), source.quant_bias()
    weight, bias = (getattr(value, "value", value) for value in (weight, bias))
    return weight.detach().to(dtype, copy=True), None if bias is None else bias.detach().to(dtype, copy=True)
