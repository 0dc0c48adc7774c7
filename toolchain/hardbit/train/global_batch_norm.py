"""BatchNorm over the rows of all processes: the statistics of the global batch, and the gradients that flow through
them (Ioffe & Szegedy 2015; Peng et al. 2018 for the synchronised form).

`torch.nn.SyncBatchNorm` computes the same on GPUs only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from hardbit.train.distributed import World

__all__ = ["global_batch_norm", "synchronised"]


def global_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    world: World,
) -> Tensor:
    """`torch.nn.functional.batch_norm` in training mode with the statistics of all processes' rows.

    `x` is (n, channels, ...) with any own n of at least 1; the running statistics, where given, move by `momentum`, the
    same on every process. In a world of one it is that function.
    """
    if world.size == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    normalised, mean, variance, count = _GlobalBatchNorm.apply(x, weight, bias, eps, world)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp_min(1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return normalised


@contextmanager
def synchronised(world: World, modules: Sequence[nn.Module]) -> Iterator[None]:
    """In the body, every BatchNorm in `modules` that normalises by its batch does so by the global one."""
    norms = {m for module in modules for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    with ExitStack() as stack:
        for norm in norms:
            norm.forward = partial(_forward, norm, world)  # type: ignore[method-assign]
            stack.callback(norm.__dict__.pop, "forward")
        yield


def _forward(norm: nn.BatchNorm1d | nn.BatchNorm2d, world: World, x: Tensor) -> Tensor:
    """What `BatchNorm2d.forward` does, over the global batch."""
    if not norm.training and norm.running_mean is not None:
        return type(norm).forward(norm, x)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # a cumulative average
            momentum = 1.0 / float(norm.num_batches_tracked)
    tracked = (norm.running_mean, norm.running_var) if norm.training else (None, None)
    return global_batch_norm(x, *tracked, norm.weight, norm.bias, momentum, norm.eps, world)


class _GlobalBatchNorm(torch.autograd.Function):
    """One collective forward (mean, squared deviations and count of each process) and one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: World
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        axes = [0, *range(2, x.dim())]
        own_variance, own_mean = torch.var_mean(_exact(x), axes, correction=0)
        rows = torch.full_like(own_mean[:1], x.numel() // channels)
        gathered = world.gather(torch.cat([own_mean, own_variance, rows]))
        means, variances, counts = gathered[:, :channels], gathered[:, channels:-1], gathered[:, -1:]
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean).square()) * counts).sum(0) / count  # Chan et al. (1979)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.world, ctx.axes = eps, world, axes
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.dim() - 2)]
        deviation = torch.rsqrt(variance + ctx.eps)
        normalised = (_exact(x) - mean.view(shape)) * deviation.view(shape)
        upstream = _exact(gradient)
        of_bias = upstream.sum(ctx.axes)
        of_weight = (upstream * normalised).sum(ctx.axes)
        sums = ctx.world.sum_in_place(torch.cat([of_bias, of_weight])) / count
        by_mean, by_variance = (part.view(shape) for part in sums.chunk(2))
        slope = deviation if weight is None else deviation * _exact(weight)
        of_x = (upstream - by_mean - normalised * by_variance) * slope.view(shape)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return (
            of_x.to(x.dtype),
            of_weight.to(weight.dtype) if needs_weight else None,
            of_bias.to(weight.dtype) if needs_bias else None,
            None,
            None,
        )


def _exact(x: Tensor) -> Tensor:
    """At least float32: sums over a batch are too long for bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
