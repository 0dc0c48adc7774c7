"""The adversaries of training and of the twin, on centred pixels: one grey level is 1/256."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hardbit.train.plan import Adversary

__all__ = ["centred", "frozen_statistics", "perturb", "pgd_on_bytes", "to_bytes"]

GREY_LEVEL = 1 / 256
LOW, HIGH = -128 / 256, 127 / 256


def centred(images: Tensor) -> Tensor:
    """uint8 pixels (n, channels, height, width) as the network takes them: (pixel - 128) / 256, float32."""
    return (images.to(torch.float32) - 128) * GREY_LEVEL


def to_bytes(images: Tensor) -> Tensor:
    """Centred pixels back to uint8, rounded half to even as the input quantizer does."""
    return torch.clamp(torch.round(images / GREY_LEVEL) + 128, 0, 255).to(torch.uint8)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm keeps normalising as it does, but attack iterates leave no trace in its running statistics."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None  # a BatchNorm with momentum None averages over as many batches as it counts
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def perturb(module: nn.Module, images: Tensor, labels: Tensor, spec: Adversary, generator: torch.Generator) -> Tensor:
    """Adversarial `images` (centred float32, (n, channels, height, width)) under `spec`, labels int64 (n,).

    Parameters get no gradient; the module's mode is left alone.
    """
    if spec.kind == "none":
        return images
    eps, step = spec.eps_255 * GREY_LEVEL, spec.step_255 * GREY_LEVEL
    delta = torch.zeros_like(images)
    if spec.kind == "n-fgsm":
        delta = (torch.rand(images.shape, generator=generator) * 4 - 2) * eps
    elif spec.random_start:
        delta = _random_start(images, spec, eps, generator)
    steps = 1 if spec.kind in ("fgsm", "n-fgsm") else spec.steps
    with frozen_statistics(module):
        for _ in range(steps):
            delta.requires_grad_(True)
            loss = F.cross_entropy(module(images + delta), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            with torch.no_grad():
                delta = delta.detach() + step * _direction(gradient, spec.norm)
                if spec.kind != "n-fgsm":
                    delta = _project(delta, eps, spec.norm)
                delta = (images + delta).clamp_(LOW, HIGH) - images
    return images + delta


def pgd_on_bytes(
    twin: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    norm: str = "linf",
    eps_255: float,
    steps: int = 10,
    seed: int = 0,
    batch_size: int = 250,
) -> NDArray[np.uint8]:
    """PGD on the twin in evaluation mode, the result rounded to bytes inside the ball: uint8 (n, channels, height,
    width).

    These images travel in the bundle, so that the board can compare its engine with the twin off the clean images too.
    """
    twin.eval()
    spec = Adversary("pgd", eps_255, steps=steps, norm=norm)
    generator = torch.Generator().manual_seed(seed)
    results = []
    for start in range(0, len(images), batch_size):
        clean = torch.from_numpy(np.array(images[start : start + batch_size]))
        target = torch.from_numpy(np.array(labels[start : start + batch_size]))
        found = perturb(twin, centred(clean), target, spec, generator)
        results.append(_inside(to_bytes(found), clean, eps_255, norm).numpy())
    return np.concatenate(results)


def _inside(adversarial: Tensor, clean: Tensor, eps_255: float, norm: str) -> Tensor:
    """Rounding to bytes may leave the ball: L-inf clips to whole grey levels, L2 rounds every pixel towards the
    image."""
    difference = adversarial.to(torch.float32) - clean.to(torch.float32)
    if norm == "linf":
        difference = difference.clamp(-int(eps_255), int(eps_255))
    else:
        length = difference.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        difference = torch.trunc(difference * (eps_255 / length).clamp_max(1.0))
    return (clean.to(torch.float32) + difference).to(torch.uint8)


def _random_start(images: Tensor, spec: Adversary, eps: float, generator: torch.Generator) -> Tensor:
    if spec.norm == "linf":
        delta = (torch.rand(images.shape, generator=generator) * 2 - 1) * eps
    else:
        delta = torch.randn(images.shape, generator=generator)
        radius = torch.rand((len(images), 1, 1, 1), generator=generator) ** (1 / images[0].numel())
        delta = delta / delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1) * radius * eps
    return (images + delta).clamp(LOW, HIGH) - images


def _direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def _project(delta: Tensor, eps: float, norm: str) -> Tensor:
    if norm == "linf":
        return delta.clamp(-eps, eps)
    length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return delta * (eps / length).clamp_max(1.0)
