"""Quantized networks for tests: random weights, BatchNorm that matters, scales calibrated on random images."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from hardbit import nets
from hardbit.quantize import Bits, calibrate, quantize
from hardbit.train.adversary import centred


def random_images(count: int, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random images, uint8 (count, *shape): upsampled noise, so that convolutions see structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 5, 5, generator=generator)
    fine = torch.rand(count, *shape, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=False)
    return ((0.8 * smooth + 0.2 * fine) * 255).round().to(torch.uint8).numpy()


def calibrated(architecture: str, bits: int | Bits, *, profile: str = "onnxruntime", **options: Any) -> fx.GraphModule:
    """`architecture` under a profile, as it stands before training: weights random, scales calibrated."""
    widths = Bits(weights=bits, activations=bits) if isinstance(bits, int) else bits
    key = (architecture, profile, repr(widths), repr(sorted(options.items())))
    if key not in _MADE:
        _MADE[key] = _calibrated(architecture, profile, widths, options)
    return copy.deepcopy(_MADE[key])


_MADE: dict[tuple[str, str, str, str], fx.GraphModule] = {}


def _calibrated(architecture: str, profile: str, bits: Bits, options: dict[str, Any]) -> fx.GraphModule:
    torch.manual_seed(0)
    network = nets.build(architecture, **options)
    module = quantize(network, profile, bits)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
    images = centred(torch.from_numpy(random_images(64, network.input_shape)))
    calibrate(module, images.split(32))
    give_statistics(module, images)
    return module.eval()


def give_statistics(module: fx.GraphModule, images: Tensor) -> None:
    """Give every BatchNorm the statistics of `images` as its own, so that evaluation sees what training does."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    module.train()
    with torch.no_grad():
        module(images)
    for norm in norms:
        norm.momentum = 0.1
