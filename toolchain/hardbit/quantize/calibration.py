"""Calibration: activation scales from a few clean batches, before the first attack."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hardbit.quantize.quantizers import activation_scale, is_activation_quantizer
from hardbit_deploy.errors import HardbitError

__all__ = ["calibrate"]


def calibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Fix every activation scale of a quantized `module`.

    `batches` are centred images, float32 (n, channels, height, width). The pass runs in training mode, so BatchNorm
    normalises by the batch as it will in training; its running statistics are put back afterwards. Raises HardbitError
    naming a quantizer that saw nothing but zeros: the images are blank, or the layer before it is dead.
    """
    scales = {n: activation_scale(m) for n, m in module.named_modules() if is_activation_quantizer(m)}
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    was_training = module.training
    module.train()
    for scale in scales.values():
        if not scale.is_fixed:
            scale.observe()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    blind = [name for name, scale in scales.items() if scale.observing and not scale.settle()]
    for norm, buffers in zip(norms, saved, strict=True):
        for name, buffer in norm.named_buffers():
            buffer.copy_(buffers[name])
    module.train(was_training)
    if blind:
        raise HardbitError(
            "calibration saw no values to choose a scale by",
            where=blind[0],
            remedy="calibrate on batches of real images; if they are, the layer before this place is dead",
        )
