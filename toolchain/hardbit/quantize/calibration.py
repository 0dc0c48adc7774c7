"""Calibration: activation scales from a few clean batches, before the first attack."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hardbit.quantize.quantizers import activation_scale, is_activation_quantizer

__all__ = ["calibrate"]


def calibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Fix every activation scale of a quantized `module`.

    `batches` are centred images, float32 (n, channels, height, width). The pass runs in training mode, so BatchNorm
    normalises by the batch as it will in training; its running statistics are put back afterwards.
    """
    scales = [activation_scale(m) for m in module.modules() if is_activation_quantizer(m)]
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    was_training = module.training
    module.train()
    for scale in scales:
        scale.observing = not scale.is_fixed
    with torch.no_grad():
        for batch in batches:
            module(batch)
    for scale in scales:
        scale.settle()
    for norm, buffers in zip(norms, saved, strict=True):
        for name, buffer in norm.named_buffers():
            buffer.copy_(buffers[name])
    module.train(was_training)
