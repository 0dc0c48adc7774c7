"""The activation quantizers of a Brevitas module through the fused operation, for training steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import brevitas.nn as qnn
from brevitas.core.quant import IntQuant, RescalingIntQuant
from torch import Tensor, nn

from hardbit.quantize.quantizers import (
    activation_numerics,
    activation_scale,
    is_activation_quantizer,
    is_weight_layer,
)
from hardbit.train.fused.operators import fake_quantize

__all__ = ["fast_activations", "rounds_and_clips"]


def rounds_and_clips(layer: Any) -> bool:
    """Whether an activation quantizer is code = clip(round(x / scale)) and nothing else."""
    tensor_quant = layer.act_quant.fused_activation_quant_proxy.tensor_quant
    return type(tensor_quant) is RescalingIntQuant and type(tensor_quant.int_quant) is IntQuant


@contextmanager
def fast_activations(module: nn.Module) -> Iterator[None]:
    """Within it the activation quantizers of `module` run through `fake_quantize`, to the same bits, and no layer wraps
    its results in Brevitas' QuantTensor. A quantizer that is being calibrated stays as it is."""
    activations: list[Any] = [m for m in module.modules() if is_activation_quantizer(m)]
    fast = [m for m in activations if rounds_and_clips(m) and not activation_scale(m).observing]
    proxies: list[Any] = [m.weight_quant for m in module.modules() if is_weight_layer(m)]
    for layer in fast:
        object.__setattr__(layer, "forward", _forward(layer))
    for proxy in proxies:
        proxy.skip_create_quant_tensor = True
    try:
        yield
    finally:
        for layer in fast:
            del layer.forward
        for proxy in proxies:
            proxy.skip_create_quant_tensor = False


def _forward(layer: Any) -> Any:
    numerics, relu = activation_numerics(layer), isinstance(layer, qnn.QuantReLU)

    def forward(x: Tensor) -> Tensor:
        return fake_quantize(x, numerics.scale, numerics.low, numerics.high, relu)

    return forward
