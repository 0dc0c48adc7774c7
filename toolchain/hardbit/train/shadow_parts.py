"""The pieces of a shadow: frozen counterparts of the modules of a quantized network.

A part is an nn.Module without parameters. `refresh` takes over the state of the modules that it stands for; nothing
changes when it is called.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardbit.quantize.quantizers import is_weight_layer
from hardbit.train.distributed import World
from hardbit.train.fused import Normalisation, activate, clip_of
from hardbit.train.global_batch_norm import global_batch_norm

__all__ = ["FrozenBatchNorm", "FrozenChain", "FrozenConv", "FrozenCopy", "FrozenLinear", "Part", "Policy", "part_of"]


@dataclass(frozen=True)
class Policy:
    """How a shadow computes: in `dtype`, BatchNorm by the batch (of all processes of `world`) or by running statistics,
    rounding or `smooth`, BatchNorm within fused chains or as an operation of its own with the bits of PyTorch's."""

    dtype: torch.dtype
    batch_statistics: bool
    smooth: bool
    world: World
    fuses_norms: bool


class Part(nn.Module):
    """What stands in a shadow for `sources`, which it does not own."""

    def __init__(self, *sources: Any) -> None:
        super().__init__()
        self._sources = sources

    def refresh(self) -> None:
        """Take over the state of the sources."""
        raise NotImplementedError


def part_of(source: nn.Module, policy: Policy) -> Part:
    """The counterpart of a module that is in no chain: its fast form, or a frozen copy where it has none."""
    if isinstance(source, nn.Conv2d):
        return FrozenConv(source, policy)
    if isinstance(source, nn.Linear):
        return FrozenLinear(source, policy)
    if isinstance(source, nn.BatchNorm1d | nn.BatchNorm2d):
        return FrozenBatchNorm(source, policy)
    return FrozenCopy(source, policy)


class _WeightLayer(Part):
    """A layer with its weights quantized already."""

    def __init__(self, source: Any, policy: Policy) -> None:
        super().__init__(source)
        self._dtype = policy.dtype

    def refresh(self) -> None:
        (source,) = self._sources
        weight, bias = source.weight, source.bias
        if is_weight_layer(source):
            weight, bias = source.weight_quant.tensor_quant(weight)[0], source.quant_bias()
        self.weight = _plain(weight, self._dtype)
        self.bias = None if bias is None else _plain(bias, self._dtype)


class FrozenConv(_WeightLayer):
    """A convolution."""

    def forward(self, x: Tensor) -> Tensor:
        (source,) = self._sources
        options: Any = (source.stride, source.padding, source.dilation, source.groups)
        return F.conv2d(x.to(self._dtype), self.weight, self.bias, *options)


class FrozenLinear(_WeightLayer):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self._dtype), self.weight, self.bias)


class FrozenBatchNorm(Part):
    """BatchNorm that keeps no account of what it sees."""

    def __init__(self, source: nn.BatchNorm1d | nn.BatchNorm2d, policy: Policy) -> None:
        super().__init__(source)
        self._policy = policy

    def refresh(self) -> None:
        self._norm = _normalisation(self._sources[0], by_batch=self._policy.batch_statistics)

    def forward(self, x: Tensor) -> Tensor:
        n = self._norm
        if n.by_batch:
            return global_batch_norm(x, None, None, n.weight, n.bias, 0.0, n.epsilon, self._policy.world)
        return F.batch_norm(x, n.mean, n.variance, n.weight, n.bias, False, 0.0, n.epsilon)


class FrozenChain(Part):
    """A fused chain: then(clip(norm(x)) + other), where any of norm, clip and then may be None."""

    def __init__(self, norm: Any, clip: Any, then: Any, policy: Policy) -> None:
        super().__init__(norm, clip, then)
        self._policy = policy

    def refresh(self) -> None:
        norm, clip, then = self._sources
        self._norm = None if norm is None else _normalisation(norm, by_batch=self._policy.batch_statistics)
        self._clip, self._then = (clip_of(source, smooth=self._policy.smooth) for source in (clip, then))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        dtype = self._policy.dtype
        if other is not None:
            other = other.to(dtype)
        norm = self._norm
        if norm is not None and norm.by_batch:  # the statistics are of this call
            norm = replace(norm, mean=torch.empty_like(norm.mean), variance=torch.empty_like(norm.variance))
        return activate(x, self._clip, normalisation=norm, other=other, then=self._then, dtype=dtype)


class FrozenCopy(Part):
    """Any other module as it is, asked for no parameter gradients."""

    def __init__(self, source: nn.Module, policy: Policy) -> None:
        super().__init__(source)
        self._copy = copy.deepcopy(source).requires_grad_(False).train(policy.batch_statistics).to(policy.dtype)

    def refresh(self) -> None:
        (source,) = self._sources
        theirs = source.state_dict()
        for name, mine in self._copy.state_dict().items():
            mine.copy_(theirs[name])

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self._copy(*arguments, **options)


def _plain(value: Any, dtype: torch.dtype) -> Tensor:
    """A copy of a tensor, or of the tensor in one of Brevitas' quantized ones."""
    tensor: Tensor = getattr(value, "value", value)
    return tensor.detach().to(dtype, copy=True)


def _normalisation(source: Any, *, by_batch: bool) -> Normalisation:
    weight, bias = (None if value is None else value.detach().clone() for value in (source.weight, source.bias))
    mean, variance = source.running_mean.detach().clone(), source.running_var.detach().clone()
    return Normalisation(weight, bias, mean, variance, source.eps, by_batch)
