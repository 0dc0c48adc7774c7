"""The adversaries of training and of the twin, on centred pixels: one grey level is 1/256."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hardbit.train.plan import Adversary
from hardbit.train.square import draw_squares, square_search

__all__ = ["GREY_LEVEL", "HIGH", "LOW", "centred", "draw_noise", "frozen_statistics", "perturb", "pgd_on_bytes",
           "to_bytes"]  # fmt: skip

GREY_LEVEL = 1 / 256
LOW, HIGH = -128 / 256, 127 / 256
_TRADES_START = 0.001 * 255 * GREY_LEVEL  # standard deviation of the start, of pixels in [0, 1], in Zhang et al. (2019)


def centred(images: Tensor) -> Tensor:
    """uint8 pixels (n, channels, height, width) as the network takes them: (pixel - 128) / 256, float32."""
    return (images.to(torch.float32) - 128) * GREY_LEVEL


def to_bytes(images: Tensor) -> Tensor:
    """Centred pixels back to uint8, rounded half to even as the input quantizer does."""
    return torch.clamp(torch.round(images / GREY_LEVEL) + 128, 0, 255).to(torch.uint8)


@contextmanager
def frozen_statistics(module: object) -> Iterator[None]:
    """BatchNorm of a module keeps normalising as it does, but attack iterates leave no trace in its running
    statistics."""
    modules = module.modules() if isinstance(module, nn.Module) else ()
    norms = [m for m in modules if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None  # a BatchNorm with momentum None averages over as many batches as it counts
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def perturb(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    target: Tensor,
    spec: Adversary,
    generator: torch.Generator | None = None,
    *,
    noise: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """Adversarial `images` (centred float32, (n, channels, height, width)) under `spec`.

    `target` is labels int64 (n,), whose cross-entropy is climbed, or probabilities float32 (n, classes), whose
    divergence from the prediction is; "trades" turns labels into the prediction for the clean image. Randomness comes
    from `noise` as `draw_noise` gives it, or is drawn here by `generator`. Parameters get no gradient; the mode of a
    module is left alone.
    """
    if spec.kind == "none":
        return images
    if noise is None:
        noise = draw_noise(images, spec, generator)
    with frozen_statistics(network):
        if spec.kind == "square":
            found = square_search(network, images, target, spec.eps_255 * GREY_LEVEL, noise, (LOW, HIGH))
        else:
            found = _climb(network, images, target, spec, noise)
    return _on_grid(images, found, spec) if spec.on_grid else found


def draw_noise(images: Tensor, spec: Adversary, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Everything random in an attack on `images`, as tensors with one row an image: so that processes that share a
    batch can draw alike and keep their rows."""
    eps = spec.eps_255 * GREY_LEVEL
    if spec.kind == "square":
        return draw_squares(images, spec.steps, generator)
    if spec.kind == "n-fgsm":
        return ((_uniform(images.shape, images, generator) * 4 - 2) * eps,)
    if spec.kind == "none" or not spec.random_start:
        return ()
    if spec.kind == "trades":
        return (_normal(images, generator) * _TRADES_START,)
    if spec.norm == "linf":
        return ((_uniform(images.shape, images, generator) * 2 - 1) * eps,)
    delta = _normal(images, generator)
    radius = _uniform((len(images), 1, 1, 1), images, generator) ** (1 / images[0].numel())
    return (delta / _length(delta) * radius * eps,)


def _uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)


def _climb(
    network: Callable[[Tensor], Tensor], images: Tensor, target: Tensor, spec: Adversary, noise: tuple[Tensor, ...]
) -> Tensor:
    eps, step = spec.eps_255 * GREY_LEVEL, spec.step_255 * GREY_LEVEL
    delta = torch.zeros_like(images)
    if noise:
        delta.copy_(noise[0])  # in the memory format of the images
        if spec.kind != "n-fgsm":
            delta = (images + delta).clamp(LOW, HIGH) - images
    if spec.kind == "trades" and not target.is_floating_point():
        with torch.no_grad():
            target = F.softmax(network(images), 1)
    for _ in range(1 if spec.kind in ("fgsm", "n-fgsm") else spec.steps):
        delta.requires_grad_(True)
        loss = _objective(network(images + delta), target)
        (gradient,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            delta = delta.detach() + step * _direction(gradient, spec.norm)
            if spec.kind != "n-fgsm":
                delta = _project(delta, eps, spec.norm)
            delta = (images + delta).clamp_(LOW, HIGH) - images
    return images + delta


def _objective(logits: Tensor, target: Tensor) -> Tensor:
    """A sum, so that the gradient of an image does not depend on how many there are."""
    if target.is_floating_point():
        return F.kl_div(F.log_softmax(logits, 1), target, reduction="sum")
    return F.cross_entropy(logits, target, reduction="sum")


def pgd_on_bytes(
    twin: Callable[[Tensor], Tensor],
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
    if isinstance(twin, nn.Module):
        twin.eval()
    spec = Adversary("pgd", eps_255, steps=steps, norm=norm, on_grid=True)
    generator = torch.Generator().manual_seed(seed)
    results = []
    for start in range(0, len(images), batch_size):
        clean = torch.from_numpy(np.array(images[start : start + batch_size]))
        target = torch.from_numpy(np.array(labels[start : start + batch_size]))
        results.append(to_bytes(perturb(twin, centred(clean), target, spec, generator)).numpy())
    return np.concatenate(results)


def _on_grid(images: Tensor, found: Tensor, spec: Adversary) -> Tensor:
    """`found` as bytes, centred again. Rounding to bytes may leave the ball: L-inf clips to whole grey levels, L2
    rounds every pixel towards the image. The ball of n-fgsm is not clipped to, that of its noise is."""
    difference = (torch.round(found / GREY_LEVEL) - torch.round(images / GREY_LEVEL)).detach()
    if spec.kind == "n-fgsm":
        pass
    elif spec.norm == "linf":
        difference = difference.clamp(-int(spec.eps_255), int(spec.eps_255))
    else:
        difference = torch.trunc(difference * (spec.eps_255 / _length(difference)).clamp_max(1.0))
    return images + difference * GREY_LEVEL


def _direction(gradient: Tensor, norm: str) -> Tensor:
    return gradient.sign() if norm == "linf" else gradient / _length(gradient)


def _project(delta: Tensor, eps: float, norm: str) -> Tensor:
    if norm == "linf":
        return delta.clamp(-eps, eps)
    return delta * (eps / _length(delta)).clamp_max(1.0)


def _length(delta: Tensor) -> Tensor:
    """L2 length of each image's part, (n, 1, 1, 1)."""
    return delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
